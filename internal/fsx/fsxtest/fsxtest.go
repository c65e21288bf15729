// Package fsxtest makes file systems that fail, for tests of durable code.
package fsxtest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"berth/internal/fsx"
)

// ErrInjected is the error of an operation that was made to fail.
var ErrInjected = errors.New("injected failure")

// Fault counts operations and makes some fail.
type Fault struct {
	mu sync.Mutex
	// at is the operation that fails, counted from 0.
	at, seen int
	dead     bool // all that follow fail as well
	torn     bool // a failing write leaves half of its bytes
	hit      *fsx.Op
}

// FailAt makes operation k fail, once: an error that the code has to handle.
func FailAt(k int) *Fault { return &Fault{at: k} }

// CrashAt makes operation k and every one after it fail: to the files it is as
// if the process had been killed there. A write at k is torn.
func CrashAt(k int) *Fault { return &Fault{at: k, dead: true, torn: true} }

// OS is the file system that fails so.
func (f *Fault) OS() *fsx.OS { return &fsx.OS{Before: f.before} }

func (f *Fault) before(op fsx.Op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.seen
	f.seen++
	if n < f.at || n > f.at && !f.dead {
		return nil
	}
	if n > f.at {
		return ErrInjected
	}
	f.hit = &op
	if f.torn && op.Call == "write" {
		return errors.Join(ErrInjected, fsx.ErrTorn)
	}
	return ErrInjected
}

// Hit tells whether operation k was reached, and what it was.
func (f *Fault) Hit() (fsx.Op, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hit == nil {
		return fsx.Op{}, false
	}
	return *f.hit, true
}

// EachOp runs fn with a fault at operation 0, 1, 2, … until one is not reached:
// then fn has run through whole. It returns the number of operations.
func EachOp(t *testing.T, fault func(k int) *Fault, fn func(t *testing.T, f *Fault)) int {
	t.Helper()
	for k := 0; ; k++ {
		f := fault(k)
		t.Run(fmt.Sprint(k), func(t *testing.T) {
			fn(t, f)
			if op, ok := f.Hit(); ok && t.Failed() {
				t.Logf("failed operation: %s", op)
			}
		})
		if _, ok := f.Hit(); !ok || t.Failed() {
			return k
		}
		if k > 10000 {
			t.Fatal("more than 10000 operations")
		}
	}
}

// Trace records operations.
type Trace struct {
	// Strip is taken off the paths where it is found.
	Strip string

	mu  sync.Mutex
	ops []string
}

// OS is a file system whose operations are recorded.
func (tr *Trace) OS() *fsx.OS { return &fsx.OS{Before: tr.before} }

func (tr *Trace) before(op fsx.Op) error {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.ops = append(tr.ops, strings.ReplaceAll(op.String(), tr.Strip, ""))
	return nil
}

// String is the operations so far, one on a line.
func (tr *Trace) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return strings.Join(tr.ops, "\n")
}
