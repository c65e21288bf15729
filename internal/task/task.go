package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"berth/internal/cgroup"
	"berth/internal/events"
	"berth/internal/mount/activation"
	"berth/internal/object"
	"berth/internal/task/shimproc"

	"github.com/containerd/errdefs"
)

// Options of New.
type Options struct {
	// Root and State are the daemon's directories; bundles are in
	// <State>/io.containerd.runtime.v2.task/<namespace>/<id>, work in the same
	// path under Root.
	Root, State string
	// Address and TTRPCAddress are the daemon's sockets, told to shims.
	Address, TTRPCAddress string
	// SocketDir is where shims' sockets are made: at most 42 bytes. Empty means
	// <State>/s, or /run/containerd/s when that is too long.
	SocketDir string
	// Version of the daemon, told to shims.
	Version string
	Events  *events.Exchange
	Log     *slog.Logger
	// Timeouts, unless it is nil, bounds calls that must not depend on the
	// goodwill of a shim; it is asked for each call.
	Timeouts func() Timeouts
	// Mounts performs mounts of root filesystems that shims cannot do; may be nil.
	Mounts *activation.Table
	// Env is added to the environment of shims.
	Env []string
}

// Deadlines of calls that must not depend on the goodwill of a shim; the values
// are those of containerd's io.containerd.timeout.* but for cleanup, which has
// 5 s there: too little for runc on a busy disk.
const (
	stateTimeout    = 2 * time.Second
	loadTimeout     = 5 * time.Second
	cleanupTimeout  = 10 * time.Second
	shutdownTimeout = 3 * time.Second
	// undoTimeout bounds the whole of taking back a create: a delete, the end of
	// the shim, and the delete command.
	undoTimeout = 3 * cleanupTimeout
)

// Manager starts, finds and ends shims, and passes operations on to them. One
// shim that hangs never holds up another's tasks.
type Manager struct {
	opts  Options
	log   *slog.Logger
	debug bool
	// self is the daemon's executable.
	self string

	infos  infoCache
	spares *shimproc.Pool

	// background counts what runs beside calls: removals, clean-ups, watches.
	background sync.WaitGroup
	// life ends with Close.
	life context.Context
	end  context.CancelFunc

	attach *cgroup.Attacher

	// found is set by New and used up by Recover.
	found leftovers
	// deletes bounds how many delete commands run at once.
	deletes chan struct{}

	mu    sync.Mutex
	tasks map[key]*task
	// sandboxes are like tasks: they have a bundle and hold a shim.
	sandboxes map[key]*task
	shims     map[string]*shim // by address
	closed    bool
}

type key struct{ namespace, id string }

// phase of a task, guarded by Manager.mu.
type phase uint8

const (
	// creating: reserved for a Create that is under way; nobody else sees it.
	creating phase = iota
	// recovering: found on disk, not yet settled by Recover.
	recovering
	alive
	// ending: its shim died and what is left of it is being cleared away.
	ending
)

// task is the daemon's view of one container with a shim.
type task struct {
	key
	// sandbox: it is none of the tasks, but one of the sandboxes.
	sandbox bool
	bundle  bundle
	phase   phase
	// settled is closed when the phases creating and recovering are over.
	settled chan struct{}
	// gone is closed when the task exists no longer; exit is set before.
	gone chan struct{}
	exit object.Exit

	// shim is set before the task becomes alive and does not change then.
	shim *shim
	// pid of the init process; 0 when it is not known. Guarded by Manager.mu.
	pid uint32
	// deletes counts Delete calls that wait for the shim. Guarded by Manager.mu.
	deletes int
}

// New makes a manager and notes which bundles there are. It touches no shim:
// Recover does, and calls for one of those tasks wait for it.
func New(opts Options) (*Manager, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []*string{&opts.Root, &opts.State} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return nil, fmt.Errorf("directory of tasks %q: %w", *dir, err)
		}
		*dir = abs
		// 0711: containers with a user namespace reach their bundle through it.
		if err := os.MkdirAll(filepath.Join(abs, tasksDir), 0o711); err != nil {
			return nil, fmt.Errorf("make directory of tasks: %w", err)
		}
		if err := os.MkdirAll(filepath.Join(abs, sandboxesDir), 0o700); err != nil {
			return nil, fmt.Errorf("make directory of sandboxes: %w", err)
		}
	}
	if err := opts.setSocketDir(); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the daemon's own executable: %w", err)
	}
	life, end := context.WithCancel(context.Background())
	m := &Manager{
		opts:      opts,
		log:       opts.Log,
		debug:     opts.Log.Enabled(life, slog.LevelDebug),
		self:      self,
		life:      life,
		end:       end,
		tasks:     make(map[key]*task),
		sandboxes: make(map[key]*task),
		shims:     make(map[string]*shim),

		attach: cgroup.NewAttacher(),
		spares: shimproc.NewPool(shimproc.Options{Address: opts.Address, Env: opts.Env, Log: opts.Log}),

		deletes: make(chan struct{}, 2*runtime.NumCPU()+2),
	}
	if err := m.findBundles(); err != nil {
		end()
		return nil, err
	}
	if opts.Events != nil {
		m.anticipate()
	}
	return m, nil
}

// anticipate prepares for a task as soon as there is a root filesystem or a
// container to make one of.
func (m *Manager) anticipate() {
	created, _ := m.opts.Events.Subscribe(m.life, `topic=="/snapshot/prepare"`, `topic=="/containers/create"`)
	m.background.Go(func() {
		for range created {
			m.attach.Prepare()
		}
	})
}

// Close lets go of the shims; they live on. Calls under way fail.
func (m *Manager) Close() error {
	m.mu.Lock()
	m.closed = true
	shims := make([]*shim, 0, len(m.shims))
	for _, s := range m.shims {
		shims = append(shims, s)
	}
	m.mu.Unlock()
	m.end()
	m.spares.Close()
	for _, s := range shims {
		s.release()
	}
	m.background.Wait()
	return nil
}

// errClosed is what calls get after Close.
var errClosed = fmt.Errorf("the daemon is shutting down: %w", errdefs.ErrUnavailable)

// reserve makes the task, or sandbox, of id in phase creating. One that is just being
// recovered or cleared away is waited for.
func (m *Manager) reserve(ctx context.Context, k key, sandbox bool) (*task, error) {
	for {
		m.mu.Lock()
		if m.closed {
			m.mu.Unlock()
			return nil, errClosed
		}
		old := m.table(sandbox)[k]
		if old == nil {
			t := m.newTask(k, creating, sandbox)
			m.table(sandbox)[k] = t
			m.mu.Unlock()
			return t, nil
		}
		wait := old.settled
		switch old.phase {
		case ending:
			wait = old.gone
		case creating, alive:
			m.mu.Unlock()
			if sandbox {
				return nil, fmt.Errorf("sandbox %q exists: %w", k.id, errdefs.ErrAlreadyExists)
			}
			return nil, fmt.Errorf("container %q has a task: %w", k.id, errdefs.ErrAlreadyExists)
		}
		m.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the end of an earlier %q: %w", k.id, ctx.Err())
		}
	}
}

func (m *Manager) table(sandbox bool) map[key]*task {
	if sandbox {
		return m.sandboxes
	}
	return m.tasks
}

func (m *Manager) newTask(k key, p phase, sandbox bool) *task {
	return &task{
		key:     k,
		sandbox: sandbox,
		bundle:  m.bundleOf(k, sandbox),
		phase:   p,
		settled: make(chan struct{}),
		gone:    make(chan struct{}),
	}
}

// settle ends the phase creating or recovering with a live task. If the shim
// died in between, the task ends at once, as with any death of a shim.
func (m *Manager) settle(t *task, s *shim, pid uint32) {
	m.mu.Lock()
	t.shim, t.pid = s, pid
	t.phase = alive
	dead := s.isDead()
	if dead {
		t.phase = ending
	}
	close(t.settled)
	m.mu.Unlock()
	if dead {
		m.background.Go(func() { m.bury(t) })
	}
}

// forget takes a task out of the table: it is as if it had never been, or has
// been deleted with the given exit. Its bundle must be gone before.
func (m *Manager) forget(t *task, exit object.Exit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	table := m.table(t.sandbox)
	if table[t.key] != t {
		return
	}
	delete(table, t.key)
	if t.phase == creating || t.phase == recovering {
		close(t.settled)
	}
	t.phase = ending
	t.exit = exit
	close(t.gone)
}

// lookup finds a task that is alive, or ending. A task that is being recovered
// is waited for; one that is being created does not exist yet.
func (m *Manager) lookup(ctx context.Context, namespace, id string) (*task, error) {
	return m.find(ctx, key{namespace, id}, false)
}

// find is lookup for both tables.
func (m *Manager) find(ctx context.Context, k key, sandbox bool) (*task, error) {
	for {
		m.mu.Lock()
		t := m.table(sandbox)[k]
		if t == nil || t.phase == creating {
			m.mu.Unlock()
			if sandbox {
				return nil, fmt.Errorf("sandbox %q: %w", k.id, errdefs.ErrNotFound)
			}
			return nil, fmt.Errorf("container %q has no task: %w", k.id, errdefs.ErrNotFound)
		}
		p := t.phase
		m.mu.Unlock()
		if p != recovering {
			return t, nil
		}
		select {
		case <-t.settled:
		case <-ctx.Done():
			return nil, fmt.Errorf("task of container %q is still being recovered: %w", k.id, ctx.Err())
		case <-m.life.Done():
			return nil, errClosed
		}
	}
}

// identifier checks a namespace, a container's ID or an exec's by containerd's
// rule for names. They become names of directories.
func identifier(what, s string) error {
	if s == "" {
		return fmt.Errorf("%s is empty: %w", what, errdefs.ErrInvalidArgument)
	}
	if len(s) > 76 {
		return fmt.Errorf("%s %q has %d characters, at most 76 are allowed: %w", what, s, len(s), errdefs.ErrInvalidArgument)
	}
	separator := true // a separator may not come first, last or twice
	for _, c := range []byte(s) {
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
			separator = false
		case !separator && (c == '.' || c == '-' || c == '_'):
			separator = true
		default:
			return fmt.Errorf("%s %q has %q where a letter or a digit must be: %w", what, s, c, errdefs.ErrInvalidArgument)
		}
	}
	if separator {
		return fmt.Errorf("%s %q ends in a separator: %w", what, s, errdefs.ErrInvalidArgument)
	}
	return nil
}

// isGone tells whether err means that the other side or the file is no longer there.
func isGone(err error) bool { return errors.Is(err, os.ErrNotExist) }
