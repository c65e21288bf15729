package stdio

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"berth/internal/object/live"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func fifo(t *testing.T, name string) string {
	path := filepath.Join(t.TempDir(), name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, io live.TaskIO) *Streams {
	s, err := Open(t.Context(), io, Options{Namespace: "ns", ID: "c"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// own duplicates the file of the process, which Started closes.
func own(t *testing.T, f *os.File) *os.File {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// started opens streams and returns the ends of a process that has been given
// them; nil where it has none.
func started(t *testing.T, io live.TaskIO) (s *Streams, stdin, stdout, stderr *os.File) {
	s = open(t, io)
	ends := make([]*os.File, 3)
	ends[0], ends[1], ends[2] = s.Child()
	for i, f := range ends {
		if f != nil {
			ends[i] = own(t, f)
		}
	}
	s.Started()
	return s, ends[0], ends[1], ends[2]
}

// reader reads a FIFO to its end, as a client does, beginning now.
func reader(t *testing.T, path string) <-chan string {
	c := make(chan string, 1)
	f, err := os.OpenFile(path, os.O_RDWR, 0) // so that opening for reading does not wait
	if err != nil {
		t.Fatal(err)
	}
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	go func() {
		defer r.Close()
		b, _ := io.ReadAll(r)
		c <- string(b)
	}()
	return c
}

func await[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("waited for 10 s")
		panic("unreachable")
	}
}

func TestOutputReachesClient(t *testing.T) {
	out, errout := fifo(t, "out"), fifo(t, "err")
	_, _, o, e := started(t, live.TaskIO{Stdout: out, Stderr: errout})
	gotOut, gotErr := reader(t, out), reader(t, errout)
	big := strings.Repeat("0123456789abcdef", 1<<16) // more than pipe and FIFO hold
	go func() {
		io.WriteString(o, big)
		o.Close()
	}()
	io.WriteString(e, "oops")
	e.Close()
	if got := await(t, gotOut); got != big {
		t.Errorf("stdout: %d bytes came, want %d", len(got), len(big))
	}
	if got := await(t, gotErr); got != "oops" {
		t.Errorf("stderr: %q", got)
	}
}

func TestOneFIFOForBoth(t *testing.T) {
	out := fifo(t, "out")
	_, _, o, e := started(t, live.TaskIO{Stdout: out, Stderr: out})
	got := reader(t, out)
	io.WriteString(o, "a")
	io.WriteString(e, "b")
	io.WriteString(o, "c")
	o.Close()
	e.Close()
	if got := await(t, got); got != "abc" {
		t.Errorf("%q, want abc", got)
	}
}

// A client that goes away must not end the process, and another one takes over.
func TestClientGoesAndComes(t *testing.T) {
	out := fifo(t, "out")
	_, _, o, _ := started(t, live.TaskIO{Stdout: out})
	first, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(o, "one")
	buf := make([]byte, 3)
	if _, err := io.ReadFull(first, buf); err != nil || string(buf) != "one" {
		t.Fatalf("%q, %v", buf, err)
	}
	first.Close()
	if _, err := io.WriteString(o, "two"); err != nil {
		t.Fatalf("the process cannot write while there is no client: %v", err)
	}
	got := reader(t, out)
	o.Close()
	if got := await(t, got); got != "two" {
		t.Errorf("the second client read %q, want two", got)
	}
}

// Output of a process that ended before its client came is not lost, and the
// client finds its end.
func TestLateClient(t *testing.T) {
	out := fifo(t, "out")
	s, _, o, _ := started(t, live.TaskIO{Stdout: out})
	io.WriteString(o, "late")
	o.Close()
	s.Drain(10 * time.Second)
	got := make(chan string, 1)
	go func() {
		b, _ := os.ReadFile(out)
		got <- string(b)
	}()
	if got := await(t, got); got != "late" {
		t.Errorf("the late client read %q", got)
	}
}

// A client that is slow to open its end is waited for: the process has not begun.
func TestSlowClient(t *testing.T) {
	path := fifo(t, "out")
	opened := make(chan *Streams)
	go func() {
		s, err := Open(t.Context(), live.TaskIO{Stdout: path}, Options{Patience: time.Hour})
		if err != nil {
			t.Error(err)
		}
		opened <- s
	}()
	r, err := os.Open(path) // waits for the other side, which waits for it
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := <-opened
	_, out, _ := s.Child()
	theirs := own(t, out)
	s.Started()
	if _, err := theirs.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	s.Close()
}

// One that never comes is not waited for beyond the patience.
func TestNoClient(t *testing.T) {
	path := fifo(t, "out")
	s, err := Open(t.Context(), live.TaskIO{Stdout: path}, Options{Patience: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err = Open(ctx, live.TaskIO{Stdout: path}, Options{Patience: time.Hour}); err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// One that takes the FIFO away while it is waited for leaves no thread behind.
func TestClientRemovesFIFO(t *testing.T) {
	path := fifo(t, "out")
	before, files := runtime.NumGoroutine(), openFiles(t)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := Open(ctx, live.TaskIO{Stdout: path}, Options{Patience: time.Hour})
		failed <- err
	}()
	for openFiles(t) == files { // until it has the FIFO
		runtime.Gosched()
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-failed; !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before || openFiles(t) > files; {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines and %d files, before %d and %d", runtime.NumGoroutine(), openFiles(t), before, files)
		}
	}
}

// A client that has opened a FIFO and has not begun to read is waited for; one that
// reads, leaves or never came is not.
func TestAwaitTaken(t *testing.T) {
	for name, tc := range map[string]struct {
		comes   bool
		client  func(r *os.File)
		untaken bool
	}{
		"reads":      {comes: true, client: func(r *os.File) { r.Read(make([]byte, 1)) }},
		"leaves":     {comes: true, client: func(r *os.File) { r.Close() }},
		"is slow":    {comes: true, client: func(*os.File) {}, untaken: true},
		"never came": {},
	} {
		t.Run(name, func(t *testing.T) {
			path := fifo(t, "out")
			var r *os.File
			if tc.comes {
				var err error
				if r, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
					t.Fatal(err)
				}
				defer r.Close()
			}
			s, _, o, _ := started(t, live.TaskIO{Stdout: path})
			if s.IsUntaken() {
				t.Error("there is nothing yet")
			}
			io.WriteString(o, "hello")
			if tc.comes && !s.IsUntaken() {
				t.Error("the client has not read yet")
			}
			o.Close()
			s.Drain(10 * time.Second)
			if tc.comes {
				tc.client(r)
			}
			s.AwaitTaken(time.Millisecond)
			if got := s.IsUntaken(); got != tc.untaken {
				t.Errorf("untaken: %v, want %v", got, tc.untaken)
			}
		})
	}
	s, _, o, _ := started(t, live.TaskIO{Stdout: os.DevNull})
	io.WriteString(o, "hello")
	if s.IsUntaken() {
		t.Error("of no FIFO")
	}
}

func TestCloseDismissesLateClients(t *testing.T) {
	out := fifo(t, "out")
	s, _, o, _ := started(t, live.TaskIO{Stdout: out})
	o.Close()
	s.Drain(10 * time.Second)
	s.Close()
	// With no writer left a non-blocking reader is at the end at once.
	f, err := os.OpenFile(out, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for deadline := time.Now().Add(10 * time.Second); ; {
		n, err := unix.Read(int(f.Fd()), make([]byte, 1))
		if n == 0 && err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("somebody keeps the FIFO open for writing")
		}
	}
}

// Whatever a stream waits for, a client that does not read or a process that
// somebody left behind, it ends with Close.
func TestCloseEndsOutput(t *testing.T) {
	out, errout := fifo(t, "out"), fifo(t, "err")
	client, err := os.OpenFile(out, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	s, _, o, _ := started(t, live.TaskIO{Stdout: out, Stderr: errout})
	cut := make(chan error, 1)
	go func() {
		_, err := o.Write(make([]byte, 1<<20))
		cut <- err
	}()
	s.Drain(10 * time.Millisecond)
	s.Close()
	if err := await(t, cut); !errors.Is(err, unix.EPIPE) {
		t.Errorf("a write after the end: %v, want EPIPE", err)
	}
	ended := make(chan bool)
	go func() {
		s.Drain(time.Minute)
		close(ended)
	}()
	await(t, ended)
}

func TestInput(t *testing.T) {
	in := fifo(t, "in")
	s, i, _, _ := started(t, live.TaskIO{Stdin: in})
	defer i.Close()
	if err := s.Input(); err != nil {
		t.Fatal(err)
	}
	client, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(client, "hello ")
	client.Close() // a client that goes away is not the end
	client, err = os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(client, "world")
	if err := s.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	client.Close()
	got := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(i)
		got <- string(b)
	}()
	if got := await(t, got); got != "hello world" {
		t.Errorf("the process read %q", got)
	}
}

// The client's end comes while the process has not read what is before it.
func TestInputEndsWhileFull(t *testing.T) {
	in := fifo(t, "in")
	s, i, _, _ := started(t, live.TaskIO{Stdin: in})
	defer i.Close()
	if err := s.Input(); err != nil {
		t.Fatal(err)
	}
	client, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Exactly what the pipe holds: the rest of the stream is its end alone.
	full := strings.Repeat("x", 64<<10)
	io.WriteString(client, full)
	for {
		n, err := unix.IoctlGetInt(int(i.Fd()), unix.TIOCINQ)
		if err != nil || n == len(full) {
			break
		}
	}
	if err := s.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	client.Close()
	// The copier has seen the end when it sleeps again, which nobody can see: give
	// it the time.
	time.Sleep(20 * time.Millisecond) // deliberate: see above
	got := make(chan int, 1)
	go func() {
		b, _ := io.ReadAll(i)
		got <- len(b)
	}()
	if n := await(t, got); n != len(full) {
		t.Errorf("%d bytes came, want %d", n, len(full))
	}
}

func TestInputOfNobody(t *testing.T) {
	in := fifo(t, "in")
	s, i, _, _ := started(t, live.TaskIO{Stdin: in})
	defer i.Close()
	if err := s.CloseStdin(); err != nil { // before the process starts
		t.Fatal(err)
	}
	if err := s.Input(); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := i.Read(make([]byte, 1))
		got <- err
	}()
	if err := await(t, got); !errors.Is(err, io.EOF) {
		t.Errorf("%v, want the end", err)
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs", "out")
	s, _, o, _ := started(t, live.TaskIO{Stdout: "file://" + path})
	io.WriteString(o, "logged")
	o.Close()
	s.Drain(10 * time.Second)
	if b, err := os.ReadFile(path); err != nil || string(b) != "logged" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestLogger(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "logger")
	text := "#!/bin/sh\n" +
		"echo x >&5; exec 5>&-\n" + // ready
		"{ echo $CONTAINER_NAMESPACE $CONTAINER_ID $1=$2; cat <&3; cat <&4; } >" + dir + "/tmp && mv " + dir + "/tmp " + dir + "/log\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	_, _, o, e := started(t, live.TaskIO{Stdout: "binary-v2://" + script + "?key=value", Stderr: "binary-v2://" + script})
	io.WriteString(o, "out\n")
	io.WriteString(e, "err\n")
	o.Close()
	e.Close()
	for deadline := time.Now().Add(10 * time.Second); ; {
		b, err := os.ReadFile(filepath.Join(dir, "log"))
		if err == nil {
			if want := "ns c key=value\nout\nerr\n"; string(b) != want {
				t.Errorf("the logger wrote %q, want %q", b, want)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the logger does not end")
		}
		time.Sleep(10 * time.Millisecond) // deliberate: an orphan, its end cannot be waited for
	}
	var ws unix.WaitStatus
	unix.Wait4(-1, &ws, 0, nil) // it is an orphan, which the shim would reap
}

func TestBadStreams(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	os.WriteFile(plain, nil, 0o600)
	failing := filepath.Join(t.TempDir(), "failing")
	os.WriteFile(failing, []byte("#!/bin/sh\nexit 1\n"), 0o700)
	for name, tc := range map[string]struct {
		io   live.TaskIO
		want error
	}{
		"no such stdin":       {live.TaskIO{Stdin: "/nonexistent/in"}, os.ErrNotExist},
		"stdin is a file":     {live.TaskIO{Stdin: plain}, errdefs.ErrInvalidArgument},
		"stdin is relative":   {live.TaskIO{Stdin: "in"}, errdefs.ErrInvalidArgument},
		"no such stdout":      {live.TaskIO{Stdout: "/nonexistent/out"}, os.ErrNotExist},
		"unknown scheme":      {live.TaskIO{Stdout: "http://example.com/x"}, errdefs.ErrInvalidArgument},
		"no such logger":      {live.TaskIO{Stdout: "binary:///nonexistent/logger"}, os.ErrNotExist},
		"logger is not ready": {live.TaskIO{Stdout: "binary-v2://" + failing}, errdefs.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			before := openFiles(t)
			_, err := Open(t.Context(), tc.io, Options{})
			if !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			if after := openFiles(t); after > before {
				t.Errorf("%d files open after, %d before", after, before)
			}
		})
	}
}

func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestTerminal(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skip(err)
	}
	fd := int(master.Fd())
	unix.SetNonblock(fd, true)
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Skip(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	master.Close()
	slave, err := os.OpenFile("/dev/pts/"+itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	in, out := fifo(t, "in"), fifo(t, "out")
	s := open(t, live.TaskIO{Stdin: in, Stdout: out, Terminal: true})
	if err := s.Resize(1, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("resize without a terminal: %v", err)
	}
	if err := s.Attach(t.Context(), os.NewFile(uintptr(dup), "master"), Options{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Input(); err != nil {
		t.Fatal(err)
	}
	if err := s.Resize(132, 50); err != nil {
		t.Fatal(err)
	}
	if size, err := unix.IoctlGetWinsize(int(slave.Fd()), unix.TIOCGWINSZ); err != nil || size.Col != 132 || size.Row != 50 {
		t.Errorf("size %+v, %v", size, err)
	}
	got := reader(t, out)
	client, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(client, "typed\n")
	buf := make([]byte, 100)
	k, err := slave.Read(buf)
	if err != nil || string(buf[:k]) != "typed\n" {
		t.Errorf("the process read %q, %v", buf[:k], err)
	}
	io.WriteString(slave, "shown\n")
	slave.Close()
	if got := await(t, got); !strings.Contains(got, "shown\r\n") {
		t.Errorf("the client read %q", got)
	}
	client.Close()
}

func itoa(n int) string {
	return string(appendInt(nil, n))
}

func appendInt(b []byte, n int) []byte {
	if n >= 10 {
		b = appendInt(b, n/10)
	}
	return append(b, byte('0'+n%10))
}

func TestNothingLeaks(t *testing.T) {
	in, out := fifo(t, "in"), fifo(t, "out")
	before := openFiles(t)
	for range 50 {
		s, err := Open(t.Context(), live.TaskIO{Stdin: in, Stdout: out, Stderr: out}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		s.Started()
		if err := s.Input(); err != nil {
			t.Fatal(err)
		}
		s.Drain(10 * time.Second)
		s.Close()
		s.Close()
	}
	// The goroutines' own files are closed soon after.
	for deadline := time.Now().Add(10 * time.Second); openFiles(t) > before; {
		if time.Now().After(deadline) {
			t.Fatalf("%d files open after, %d before", openFiles(t), before)
		}
	}
}

// FuzzOutput: whatever a client names as an output is opened or refused, and never
// leads below a relative path.
func FuzzOutput(f *testing.F) {
	for _, s := range []string{"", "/dev/null", "file:///dev/null", "binary:///bin/true?a=b", "fifo://x", "://", "file://%zz", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if strings.HasPrefix(path, "file:") || bytes.ContainsRune([]byte(path), 0) {
			t.Skip("would make files")
		}
		_, _ = loggerURI(path)
		if out, err := openOutput(t.Context(), path, 0); err == nil {
			if !filepath.IsAbs(out.file.Name()) {
				t.Errorf("%q led to %s", path, out.file.Name())
			}
			out.file.Close()
		}
	})
}

func BenchmarkSplice(b *testing.B) {
	path := filepath.Join(b.TempDir(), "out")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		b.Fatal(err)
	}
	s, err := Open(context.Background(), live.TaskIO{Stdout: path}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	_, o, _ := s.Child()
	fd, err := unix.FcntlInt(o.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	w := os.NewFile(uintptr(fd), "w")
	s.Started()
	r, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	chunk := make([]byte, 64<<10)
	b.SetBytes(int64(len(chunk)))
	go func() {
		buf := make([]byte, 64<<10)
		for {
			if _, err := r.Read(buf); err != nil {
				return
			}
		}
	}()
	for b.Loop() {
		if _, err := w.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	w.Close()
}
