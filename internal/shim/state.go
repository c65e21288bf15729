package shim

import (
	"fmt"

	"berth/internal/object/live"

	"github.com/containerd/errdefs"
)

// state of a process. The states that end in -ing last as long as one operation,
// which alone may leave them.
type state uint8

const (
	creating state = iota // the runtime makes it; not yet shown to clients
	created               // init: waits at the exec FIFO; exec: added, there is no process
	starting
	running
	pausing
	paused
	resuming
	checkpointing
	stopped // ended and reported
	deleting
	deleted
	states // how many there are
)

func (s state) String() string {
	return [states]string{"creating", "created", "starting", "running", "pausing", "paused", "resuming", "checkpointing", "stopped", "deleting", "deleted"}[s]
}

// status is the state as clients know it.
func (s state) status() live.TaskStatus {
	switch s {
	case creating, created, starting:
		return live.TaskCreated
	case running, checkpointing:
		return live.TaskRunning
	case pausing:
		return live.TaskPausing
	case paused, resuming:
		return live.TaskPaused
	case stopped, deleting:
		return live.TaskStopped
	default:
		return live.TaskUnknown
	}
}

// operation that a client asks for.
type operation uint8

const (
	opStart operation = iota
	opDelete
	opPause
	opResume
	opKill
	opExec
	opResize
	opCloseIO
	opUpdate
	opCheckpoint
	opPids
	opStats
	operations // how many there are
)

func (o operation) String() string {
	return [operations]string{"start", "delete", "pause", "resume", "kill", "exec in", "resize", "close the input of", "update", "checkpoint", "list the processes of", "measure"}[o]
}

// rule says what an operation does in a state.
type rule struct {
	// allowed operations run; during is the state meanwhile (stay when there is none).
	allowed bool
	during  state
	// kind is the error of those that are not allowed.
	kind error
}

const stay = states

// ruleOf is the table of states and operations, of an init process or an exec.
// It is the only place that knows what is possible when.
func ruleOf(s state, op operation, exec bool) rule {
	precondition := rule{kind: errdefs.ErrFailedPrecondition}
	do := func(during state) rule { return rule{allowed: true, during: during} }
	if s == deleted || s == creating {
		return rule{kind: errdefs.ErrNotFound}
	}
	switch op {
	case opStart:
		if s == created {
			return do(starting)
		}
	case opDelete:
		switch s {
		case created, stopped:
			return do(deleting)
		}
	case opPause:
		if s == running && !exec {
			return do(pausing)
		}
	case opResume:
		if s == paused && !exec {
			return do(resuming)
		}
	case opCheckpoint:
		if (s == running || s == paused) && !exec {
			return do(checkpointing)
		}
	case opKill:
		switch {
		case s == stopped || s == deleting:
			return rule{kind: errdefs.ErrNotFound}
		case s == created && exec:
			return precondition // there is no process yet
		}
		return do(stay)
	case opExec:
		if s == created || s == starting || s == running || s == checkpointing {
			return do(stay)
		}
	case opResize, opUpdate:
		if s != stopped && s != deleting {
			return do(stay)
		}
	case opCloseIO:
		return do(stay)
	case opPids, opStats:
		return do(stay)
	}
	return precondition
}

// refusal is the error of an operation that the table does not allow. Clients
// look at its kind, people at its text.
func refusal(s state, op operation, kind error) error {
	if kind == errdefs.ErrNotFound {
		if op == opKill {
			return fmt.Errorf("process already finished: %w", kind)
		}
		return fmt.Errorf("process does not exist: %w", kind)
	}
	return fmt.Errorf("cannot %s a %s process: %w", op, s, kind)
}
