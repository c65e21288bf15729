package procio

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// shimEnd opens the other ends as a shim does.
func open(t *testing.T, path string, flag int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func TestOutputIsCompleteAtExit(t *testing.T) {
	p, err := New(t.TempDir(), "c", false)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs buffer
	c, err := Start(p, Streams{Stdout: &out, Stderr: &errs}, nil)
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr := open(t, p.Stdout, os.O_WRONLY), open(t, p.Stderr, os.O_WRONLY)
	want := strings.Repeat("0123456789abcdef", 64<<10)
	io.WriteString(stderr, "oops\n")
	io.WriteString(stdout, want)
	stdout.Close()
	stderr.Close()
	if !c.Drain(10 * time.Second) {
		t.Fatal("outputs did not end with their writers")
	}
	if out.b.String() != want || errs.b.String() != "oops\n" {
		t.Errorf("got %d bytes of %d, stderr %q", out.b.Len(), len(want), errs.b.String())
	}
	p.Remove()
	if _, err := os.Stat(p.dir); !os.IsNotExist(err) {
		t.Errorf("Remove left %s: %v", p.dir, err)
	}
}

// A reader that comes before any writer must not take that for the end.
func TestReaderWaitsForFirstWriter(t *testing.T) {
	p, err := New(t.TempDir(), "c", true)
	if err != nil {
		t.Fatal(err)
	}
	if p.Stderr != "" {
		t.Errorf("a terminal has a stderr: %s", p.Stderr)
	}
	var out buffer
	c, err := Start(p, Streams{Stdout: &out}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Drain(20 * time.Millisecond) {
		t.Fatal("output ended before it began")
	}
	w := open(t, p.Stdout, os.O_WRONLY)
	io.WriteString(w, "x")
	w.Close()
	if !c.Drain(10*time.Second) || out.b.String() != "x" {
		t.Errorf("got %q", out.b.String())
	}
}

func TestStdinEndsAfterStart(t *testing.T) {
	p, err := New(t.TempDir(), "c", false)
	if err != nil {
		t.Fatal(err)
	}
	eof := make(chan struct{})
	c, err := Start(p, Streams{Stdin: strings.NewReader("hello")}, func() { close(eof) })
	if err != nil {
		t.Fatal(err)
	}
	r := open(t, p.Stdin, os.O_RDWR) // a shim holds both ends
	select {
	case <-eof:
		t.Fatal("stdin was closed before the process started")
	case <-time.After(20 * time.Millisecond):
	}
	c.Started()
	<-eof
	b := make([]byte, 16)
	if n, err := r.Read(b); err != nil || string(b[:n]) != "hello" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	r.Close()
	c.Close()
}

func TestCloseWithoutPeer(t *testing.T) {
	p, err := New(t.TempDir(), "c", false)
	if err != nil {
		t.Fatal(err)
	}
	var out buffer
	c, err := Start(p, Streams{Stdin: strings.NewReader("x"), Stdout: &out, Stderr: &out}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Started()
	c.Close()
	if !c.Drain(10 * time.Second) {
		t.Error("Close did not end the copying")
	}
	p.Remove()
}

func TestDiscard(t *testing.T) {
	dir := t.TempDir()
	p, err := New(dir, "c", false)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "log")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	Discard(p.Stdin, p.Stdout, p.Stderr, "", "file://"+file, file)
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "log" {
		t.Errorf("%v, %v", left, err)
	}
}
