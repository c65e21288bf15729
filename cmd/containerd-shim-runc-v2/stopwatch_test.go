package main

import "time"

// stopwatch returns a function that tells the milliseconds since its last call.
func stopwatch() func() float64 {
	last := time.Now()
	return func() float64 {
		now := time.Now()
		d := now.Sub(last)
		last = now
		return d.Seconds() * 1e3
	}
}
