package shim

import (
	"errors"
	"strings"
	"testing"

	"berth/internal/object/live"

	"github.com/containerd/errdefs"
)

// The table as people read it: for each operation the states in which it is
// allowed, and those in which the error says that there is no process; in all
// others it is a failed precondition.
func TestTable(t *testing.T) {
	const missing = "creating deleted"
	for _, tc := range []struct {
		op             operation
		exec           bool
		allowed        string
		notFound       string
		meanwhileState map[string]state
	}{
		{opStart, false, "created", missing, map[string]state{"created": starting}},
		{opStart, true, "created", missing, map[string]state{"created": starting}},
		{opDelete, false, "created stopped", missing, map[string]state{"created": deleting, "stopped": deleting}},
		{opDelete, true, "created stopped", missing, map[string]state{"created": deleting, "stopped": deleting}},
		{opPause, false, "running", missing, map[string]state{"running": pausing}},
		{opPause, true, "", missing, nil},
		{opResume, false, "paused", missing, map[string]state{"paused": resuming}},
		{opResume, true, "", missing, nil},
		{opKill, false, "created starting running pausing paused resuming checkpointing", missing + " stopped deleting", nil},
		{opKill, true, "starting running pausing paused resuming checkpointing", missing + " stopped deleting", nil},
		{opExec, false, "created starting running checkpointing", missing, nil},
		{opResize, false, "created starting running pausing paused resuming checkpointing", missing, nil},
		{opResize, true, "created starting running pausing paused resuming checkpointing", missing, nil},
		{opCloseIO, false, "created starting running pausing paused resuming checkpointing stopped deleting", missing, nil},
		{opCloseIO, true, "created starting running pausing paused resuming checkpointing stopped deleting", missing, nil},
		{opUpdate, false, "created starting running pausing paused resuming checkpointing", missing, nil},
		{opCheckpoint, false, "running paused", missing, map[string]state{"running": checkpointing, "paused": checkpointing}},
		{opCheckpoint, true, "", missing, nil},
		{opPids, false, "created starting running pausing paused resuming checkpointing stopped deleting", missing, nil},
		{opStats, false, "created starting running pausing paused resuming checkpointing stopped deleting", missing, nil},
	} {
		for s := range states {
			r := ruleOf(s, tc.op, tc.exec)
			name := s.String()
			has := func(list string) bool { return strings.Contains(" "+list+" ", " "+name+" ") }
			if r.allowed != has(tc.allowed) {
				t.Errorf("%s of a %s process (exec: %v): allowed is %v", tc.op, name, tc.exec, r.allowed)
				continue
			}
			if r.allowed {
				want, changes := tc.meanwhileState[name]
				if !changes {
					want = stay
				}
				if r.during != want {
					t.Errorf("%s of a %s process: state meanwhile is %d, want %d", tc.op, name, r.during, want)
				}
				continue
			}
			want := error(errdefs.ErrFailedPrecondition)
			if has(tc.notFound) {
				want = errdefs.ErrNotFound
			}
			err := refusal(s, tc.op, r.kind)
			if !errors.Is(err, want) {
				t.Errorf("%s of a %s process: %v, want %v", tc.op, name, err, want)
			}
		}
	}
}

// Clients look for these words.
func TestRefusals(t *testing.T) {
	for _, tc := range []struct {
		s    state
		op   operation
		want string
	}{
		{running, opDelete, "cannot delete a running process"},
		{paused, opDelete, "cannot delete a paused process"},
		{running, opStart, "cannot start a running process"},
		{stopped, opStart, "cannot start a stopped process"},
		{stopped, opKill, "process already finished"},
		{paused, opExec, "cannot exec in a paused process"},
	} {
		err := refusal(tc.s, tc.op, ruleOf(tc.s, tc.op, false).kind)
		if !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q, want %q", err, tc.want)
		}
	}
}

func TestStatuses(t *testing.T) {
	want := map[state]live.TaskStatus{
		creating: live.TaskCreated, created: live.TaskCreated, starting: live.TaskCreated, running: live.TaskRunning,
		pausing: live.TaskPausing, paused: live.TaskPaused, resuming: live.TaskPaused, checkpointing: live.TaskRunning,
		stopped: live.TaskStopped, deleting: live.TaskStopped, deleted: live.TaskUnknown,
	}
	for s := range states {
		if s.status() != want[s] {
			t.Errorf("%s is shown as %s, want %s", s, s.status(), want[s])
		}
	}
	for op := range operations {
		if op.String() == "" {
			t.Errorf("operation %d has no name", op)
		}
	}
}
