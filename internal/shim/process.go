package shim

import (
	"sync"
	"time"

	"berth/internal/failpoint"
	"berth/internal/object/live"
	"berth/internal/ociruntime"
	"berth/internal/stdio"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// process is the init of a container, or an exec in it.
type process struct {
	c      *container
	execID string // empty: the init
	io     live.TaskIO
	spec   *specs.Process // of an exec, until it is started

	// exited is closed when the end was reported.
	exited chan struct{}

	mu      sync.Mutex
	state   state
	pid     uint32
	streams *stdio.Streams
	// end is set as soon as the process was collected, which may be while it is
	// still creating or starting; the report then waits for that.
	end *live.Exit
}

func newProcess(c *container, execID string, io live.TaskIO) *process {
	return &process{c: c, execID: execID, io: io, exited: make(chan struct{})}
}

func (p *process) isExec() bool { return p.execID != "" }

// made tells whether clients may see the process.
func (p *process) made() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state != creating
}

// begin enters an operation, or tells why it is not possible now.
func (p *process) begin(op operation) (before state, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := ruleOf(p.state, op, p.isExec())
	if !r.allowed {
		return p.state, refusal(p.state, op, r.kind)
	}
	before = p.state
	if r.during != stay {
		p.state = r.during
	}
	return before, nil
}

// finish leaves the state of an operation for after, unless the process ended
// meanwhile and that was reported.
func (p *process) finish(during, after state) {
	p.mu.Lock()
	if p.state == during {
		p.state = after
	}
	p.mu.Unlock()
}

// settle makes the state after the process is created or started visible, and
// reports its end if that came already.
func (p *process) settle(after state) {
	p.mu.Lock()
	p.state = after
	ended := p.end != nil
	p.mu.Unlock()
	if ended {
		p.report()
	}
}

// collected is called by the reaper.
func (p *process) collected(status uint32, at time.Time) {
	p.mu.Lock()
	p.end = &live.Exit{PID: p.pid, Status: status, At: at}
	early := p.state == creating || p.state == starting
	p.mu.Unlock()
	if !early {
		p.report()
	}
}

// lastExecs bounds how long the report of a container's end waits for those of its
// execs: one may have escaped from its cgroup, and from being killed.
const lastExecs = 10 * time.Second

// report tells the end of the process. That of a container is told after those of
// all its execs. Compat: containerd's shim, clients of which take the end of the
// init for the last one.
func (p *process) report() {
	failpoint.Hit("shim.exit.seen")
	p.c.beforeExit(p)
	var execs []*process
	if !p.isExec() {
		execs = p.c.startedExecs()
	}
	if len(execs) == 0 && !p.isUntaken() {
		p.tell()
		return
	}
	go func() { // they are collected by who called us
		_ = p.withStreams(func(s *stdio.Streams) error {
			s.AwaitTaken(takenTimeout)
			return nil
		})
		timer := time.NewTimer(lastExecs)
		defer timer.Stop()
		for _, e := range execs {
			select {
			case <-e.exited:
			case <-timer.C:
				p.c.service.log.Warn("an exec outlives its container", "container", p.c.id, "exec", e.execID)
				p.tell()
				return
			}
		}
		p.tell()
	}()
}

// takenTimeout bounds how long the report of an end waits for a client that has
// opened its end of a FIFO, but not begun to read: it would lose what it asked for.
const takenTimeout = time.Second

// isUntaken tells whether there is output that the client has not begun to read.
func (p *process) isUntaken() (untaken bool) {
	_ = p.withStreams(func(s *stdio.Streams) error {
		untaken = s.IsUntaken()
		return nil
	})
	return untaken
}

// tell publishes the end of the process and lets those that wait for it go.
func (p *process) tell() {
	p.mu.Lock()
	if p.state != deleting {
		p.state = stopped
	}
	p.end.PID = p.pid
	end := *p.end
	p.mu.Unlock()
	if !p.isExec() {
		if err := writeExit(p.c.bundle, end); err != nil {
			p.c.service.log.Warn("the exit status cannot be recorded in the bundle", "container", p.c.id, "error", err)
		}
	}
	failpoint.Hit("shim.exit.before-publish")
	p.c.service.publish(exitEvent(p.c.id, p.execID, end))
	failpoint.Hit("shim.exit.published")
	close(p.exited)
}

// snapshot is the process as clients see it.
func (p *process) snapshot() live.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := live.Process{ContainerID: p.c.id, ExecID: p.execID, PID: p.pid, Status: p.state.status(), IO: p.io}
	if p.end != nil && s.Status == live.TaskStopped {
		s.Exit = *p.end
	}
	return s
}

// attach gives the started process p its PID and its terminal.
func (p *process) attach(oci ociruntime.Process, streams *stdio.Streams) error {
	p.mu.Lock()
	p.pid = uint32(oci.PID())
	p.streams = streams
	p.mu.Unlock()
	streams.Started()
	if console := oci.Console(); console != nil {
		return streams.Attach(p.c.service.ctx, console, p.c.stdioOptions())
	}
	return nil
}

// detach undoes attach before anybody else may take the PID for the process's own.
func (p *process) detach() {
	p.mu.Lock()
	p.pid, p.streams = 0, nil
	p.mu.Unlock()
}

// openInput lets the process read what its client writes. That it cannot is no
// reason to end a process that runs.
func (p *process) openInput() {
	if err := p.withStreams((*stdio.Streams).Input); err != nil {
		p.c.service.log.Warn("the process has no input", "container", p.c.id, "exec", p.execID, "error", err)
	}
}

// drainTimeout bounds how long a delete waits for output that a left-over child
// of the process keeps from ending.
const drainTimeout = 10 * time.Second

// release lets go of the streams of a process that has ended.
func (p *process) release() {
	p.mu.Lock()
	streams := p.streams
	p.streams = nil
	p.mu.Unlock()
	if streams != nil {
		streams.Drain(drainTimeout)
		streams.Close()
	}
}

func (p *process) withStreams(fn func(*stdio.Streams) error) error {
	p.mu.Lock()
	streams := p.streams
	p.mu.Unlock()
	if streams == nil {
		return nil
	}
	return fn(streams)
}
