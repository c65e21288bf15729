package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

func logsCommand() *cli.Command {
	return &cli.Command{
		Name: "logs", Usage: "Print what a task has written to its log file", ArgsUsage: "[flags] CONTAINER",
		Description: "For tasks that were started with --log-uri file://PATH. With --follow it goes on until the task ends.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "Print what is written from now on, too, until the task ends"},
			&cli.StringFlag{Name: "tail", Usage: "Print that many of the last lines only, or all", Value: "all"},
			&cli.StringFlag{Name: "since", Usage: "Print lines from that time on: RFC 3339, or how long ago, such as 10m; lines must begin with their time"},
			&cli.StringFlag{Name: "exec-id", Usage: "Exec whose log it is"},
		},
		Action: withSession(logsAction),
	}
}

func logsAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "container id"); err != nil {
		return err
	}
	lines := -1
	if v := cmd.String("tail"); v != "all" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			return invalid("--tail %s: a number of lines is needed, or all", v)
		}
		lines = n
	}
	since, err := parseSince(cmd.String("since"), time.Now())
	if err != nil {
		return err
	}
	p := s.process(cmd.Args().First(), cmd.String("exec-id"))
	path, err := logFile(ctx, p)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("the log of %s: %w", p.id, err)
	}
	defer func() { f.Close() }()
	out := &logWriter{w: os.Stdout, since: since}
	if !since.IsZero() && lines >= 0 {
		return invalid("--since and --tail cannot be used together")
	}
	if err := seekTail(f, lines); err != nil {
		return fmt.Errorf("the log of %s: %w", p.id, err)
	}
	if !cmd.Bool("follow") {
		_, err := io.Copy(out, f)
		return errors.Join(err, out.end())
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	return follow(ctx, f, out, p)
}

// parseSince reads a time, or a duration before now. Zero for "".
func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, invalid("--since %s is neither a time such as 2026-01-02T15:04:05Z nor a duration such as 10m", text)
}

// logFile is the file that a task writes to.
func logFile(ctx context.Context, p process) (string, error) {
	state, err := p.state(ctx)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(state.Stdout)
	switch {
	case err != nil || state.Stdout == "":
		return "", fmt.Errorf("task %s writes its output nowhere: start it with --log-uri file:///var/log/%s.log: %w", p.id, p.id, errdefs.ErrFailedPrecondition)
	case u.Scheme == "file":
		return u.Path, nil
	case u.Scheme == "":
		return "", fmt.Errorf("task %s keeps no log: its output goes to whoever attaches ('ctr tasks attach %s'); start it with --log-uri file:///var/log/%s.log: %w", p.id, p.id, p.id, errdefs.ErrFailedPrecondition)
	}
	return "", fmt.Errorf("task %s logs to %s, which only that logger can read: %w", p.id, state.Stdout, errdefs.ErrFailedPrecondition)
}

// seekTail moves to the last n lines, to the start when n is negative.
func seekTail(f *os.File, n int) error {
	if n < 0 {
		return nil
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	const block = 64 << 10
	buf := make([]byte, block)
	// The end of the last line does not begin another one.
	for at, found := end, 0; at > 0; {
		size := min(block, at)
		at -= size
		if _, err := f.ReadAt(buf[:size], at); err != nil {
			return err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' || at+i == end-1 {
				continue
			}
			if found++; found == n {
				_, err := f.Seek(at+i+1, io.SeekStart)
				return err
			}
		}
		if n == 0 {
			return nil
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// logWriter passes lines on, those before since excepted. A line that carries no
// time belongs to the one before.
type logWriter struct {
	w       io.Writer
	since   time.Time
	partial []byte
	timed   bool // a line with a time was seen
	reached bool
}

// maxLine bounds a line that is looked at for its time.
const maxLine = 1 << 20

func (l *logWriter) Write(p []byte) (int, error) {
	if l.since.IsZero() || l.reached {
		return l.w.Write(p)
	}
	l.partial = append(l.partial, p...)
	for !l.reached {
		i := bytes.IndexByte(l.partial, '\n')
		if i < 0 {
			if len(l.partial) > maxLine {
				l.partial = l.partial[:0]
			}
			return len(p), nil
		}
		if t, ok := lineTime(l.partial[:i]); ok {
			l.timed = true
			l.reached = !t.Before(l.since)
		}
		if !l.reached {
			l.partial = l.partial[i+1:]
		}
	}
	_, err := l.w.Write(l.partial)
	l.partial = nil
	return len(p), err
}

// end is an error when the lines carried no time to compare.
func (l *logWriter) end() error {
	if l.since.IsZero() || l.timed {
		return nil
	}
	return invalid("--since: the lines of this log do not begin with their time")
}

// lineTime is the time that a line begins with: RFC 3339 (as CRI's logs have
// it), or the common form with a space.
func lineTime(line []byte) (time.Time, bool) {
	text := strings.TrimLeft(string(line[:min(len(line), 48)]), `[{"`)
	text = strings.TrimPrefix(strings.TrimPrefix(text, "time="), `"`)
	word, rest, _ := strings.Cut(text, " ")
	if t, err := time.Parse(time.RFC3339Nano, strings.TrimRight(word, `",]`)); err == nil {
		return t, true
	}
	second, _, _ := strings.Cut(rest, " ")
	for _, layout := range []string{"2006-01-02 15:04:05", "2006/01/02 15:04:05"} {
		second, _, _ := strings.Cut(second, ",") // milliseconds, as Python writes them
		if t, err := time.ParseInLocation(layout, word+" "+strings.TrimRight(second, `",]`), time.Local); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// follow prints what comes until the process ends or ctx does. A file that is
// replaced (rotated) is opened again.
func follow(ctx context.Context, f *os.File, out *logWriter, p process) error {
	watch, err := watchFile(f.Name())
	if err != nil {
		return err
	}
	defer watch.close()
	exited := make(chan error, 1)
	go func() {
		for {
			// The file goes on without the daemon; its next one knows of the end.
			_, err := p.tasks.Wait(ctx, &tasksapi.WaitRequest{ContainerID: p.id, ExecID: p.execID}, grpc.WaitForReady(true))
			if !errdefs.IsUnavailable(err) {
				exited <- ignoreNotFound(err)
				return
			}
		}
	}()
	for {
		if _, err := io.Copy(out, f); err != nil {
			return err
		}
		if next, ok := reopened(f); ok {
			io.Copy(out, f) // what was written before it was replaced
			f.Close()
			f = next
			continue
		}
		select {
		case <-watch.changed:
		case <-ctx.Done():
			return nil
		case err := <-exited:
			// The shim has written everything before it reports the end.
			_, e := io.Copy(out, f)
			return errors.Join(err, e, out.end())
		}
	}
}

// reopened opens the file anew if another one has its name.
func reopened(f *os.File) (*os.File, bool) {
	now, err := os.Stat(f.Name())
	if err != nil {
		return nil, false
	}
	if was, err := f.Stat(); err != nil || os.SameFile(was, now) {
		return nil, false
	}
	next, err := os.Open(f.Name())
	return next, err == nil
}

// watcher tells of changes to a file: inotify, nothing polls.
type watcher struct {
	f       *os.File
	changed chan struct{}
}

func watchFile(path string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watching %s: %w (fs.inotify.max_user_instances may be too low; see 'ctr doctor')", path, err)
	}
	w := &watcher{f: os.NewFile(uintptr(fd), "inotify"), changed: make(chan struct{}, 1)}
	// The directory's events are those of its files, the creation of one included.
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		w.f.Close()
		return nil, &fs.PathError{Op: "inotify", Path: filepath.Dir(path), Err: err}
	}
	go func() {
		for r := bufio.NewReaderSize(w.f, 64<<10); ; {
			if _, err := r.Peek(1); err != nil {
				return
			}
			r.Discard(r.Buffered())
			select {
			case w.changed <- struct{}{}:
			default:
			}
		}
	}()
	return w, nil
}

func (w *watcher) close() { w.f.Close() }
