//go:build failpoints

package failpoint

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Variable is the environment variable that holds the actions.
const Variable = "BERTH_FAILPOINTS"

// point is what happens at one name.
type point struct {
	do    string // kill, error, delay or hold
	fifo  string // of hold
	delay time.Duration
	at    int64 // the hit that counts; 0: each
	hits  atomic.Int64
}

type plan struct {
	list   *os.File // nil: nothing is recorded
	points map[string]*point
}

var actions = sync.OnceValue(func() plan {
	p, err := parse(os.Getenv(Variable))
	if err != nil {
		panic(fmt.Sprintf("%s: %v", Variable, err))
	}
	return p
})

// Hit does what the environment asks for at this name.
func Hit(name string) error { return actions().hit(name) }

func (p plan) hit(name string) error {
	if p.list != nil {
		// One write: lines of several processes do not mix.
		if _, err := p.list.WriteString(name + "\n"); err != nil {
			panic(err)
		}
	}
	pt := p.points[name]
	if pt == nil {
		return nil
	}
	if n := pt.hits.Add(1); pt.at != 0 && n != pt.at {
		return nil
	}
	switch pt.do {
	case "kill":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "delay":
		time.Sleep(pt.delay)
		return nil
	case "hold":
		// A test that is over has removed the FIFO: nobody waits any more.
		if f, err := os.Open(pt.fifo); err == nil {
			io.Copy(io.Discard, f)
			f.Close()
		}
		return nil
	}
	return fmt.Errorf("failpoint %s", name)
}

func parse(s string) (plan, error) {
	p := plan{points: map[string]*point{}}
	for action := range strings.SplitSeq(s, ";") {
		if action == "" {
			continue
		}
		name, do, ok := strings.Cut(action, "=")
		if !ok {
			return p, fmt.Errorf("%q is not of the form name=action", action)
		}
		if name == "list" {
			var err error
			// Close-on-exec; children open it themselves.
			if p.list, err = os.OpenFile(do, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o666); err != nil {
				return p, err
			}
			continue
		}
		pt, name, err := parsePoint(name, do)
		if err != nil {
			return p, fmt.Errorf("%q: %w", action, err)
		}
		p.points[name] = pt
	}
	return p, nil
}

func parsePoint(name, do string) (*point, string, error) {
	pt := &point{do: do, at: 1}
	if d, ok := strings.CutPrefix(do, "delay:"); ok {
		var err error
		if pt.delay, err = time.ParseDuration(d); err != nil {
			return nil, "", err
		}
		pt.do, pt.at = "delay", 0
	} else if fifo, ok := strings.CutPrefix(do, "hold:"); ok {
		pt.do, pt.fifo = "hold", fifo
	} else if do != "kill" && do != "error" {
		return nil, "", fmt.Errorf("unknown action %q", do)
	}
	name, number, numbered := strings.Cut(name, "@")
	if numbered {
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || n < 1 {
			return nil, "", fmt.Errorf("%q is not the number of a hit", number)
		}
		pt.at = n
	}
	if name == "" {
		return nil, "", errors.New("no name")
	}
	return pt, name, nil
}
