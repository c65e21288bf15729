package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"berth/internal/filter"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// MaxRef bounds the length of an ingest reference in bytes. It leaves room for
// the namespace that package meta puts before the 4096 of a client.
const MaxRef = 4352

func checkRef(ref string) error {
	if ref == "" || len(ref) > MaxRef {
		return fmt.Errorf("ingest reference %.64q has %d bytes, 1 to %d are allowed: %w", ref, len(ref), MaxRef, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (l *Local) ingestDir(ref string) string {
	return filepath.Join(l.root, "ingest", digest.FromString(ref).Encoded())
}

func (l *Local) Status(_ context.Context, ref string) (object.IngestStatus, error) {
	if err := checkRef(ref); err != nil {
		return object.IngestStatus{}, err
	}
	if w := l.namelessWriter(ref); w != nil {
		return w.Status()
	}
	status, err := readIngest(l.ingestDir(ref))
	if errors.Is(err, fs.ErrNotExist) {
		return object.IngestStatus{}, fmt.Errorf("ingest %q: %w", ref, errdefs.ErrNotFound)
	}
	if err != nil {
		return object.IngestStatus{}, fmt.Errorf("ingest %q: %w", ref, err)
	}
	return status, nil
}

// ListStatuses leaves out directories that are no ingest.
func (l *Local) ListStatuses(ctx context.Context, filters ...string) ([]object.IngestStatus, error) {
	match, err := filter.ParseAll(filters...)
	if err != nil {
		return nil, err
	}
	// Those without a directory first: one that gets it meanwhile is seen twice
	// rather than not at all.
	byRef := l.namelessStatuses()
	entries, err := os.ReadDir(filepath.Join(l.root, "ingest"))
	if err != nil {
		return nil, fmt.Errorf("list ingests: %w", err)
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		status, err := readIngest(filepath.Join(l.root, "ingest", e.Name()))
		if err != nil {
			continue // being made or removed, or garbage
		}
		byRef[status.Ref] = status
	}
	var statuses []object.IngestStatus
	for _, ref := range slices.Sorted(maps.Keys(byRef)) {
		if match.Match(AdaptStatus(byRef[ref])) {
			statuses = append(statuses, byRef[ref])
		}
	}
	return statuses, nil
}

func (l *Local) namelessWriter(ref string) *localWriter {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nameless[ref]
}

func (l *Local) namelessStatuses() map[string]object.IngestStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	statuses := make(map[string]object.IngestStatus, len(l.nameless))
	for ref, w := range l.nameless {
		statuses[ref], _ = w.Status()
	}
	return statuses
}

func (l *Local) setNameless(w *localWriter, nameless bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if nameless {
		l.nameless[w.ref] = w
	} else {
		delete(l.nameless, w.ref)
	}
}

// Abort removes an ingest. A writer that has it open fails at its Commit with
// errdefs.ErrNotFound.
func (l *Local) Abort(_ context.Context, ref string) error {
	if err := checkRef(ref); err != nil {
		return err
	}
	// The lock keeps a writer from taking up what is being removed; one that is
	// open already finds out when it commits.
	if unlock, _, ok := l.refs.TryLock(ref); ok {
		defer unlock()
	}
	open := l.namelessWriter(ref)
	if open != nil {
		open.aborted.Store(true)
	}
	dir := l.ingestDir(ref)
	if _, err := os.Lstat(dir); err != nil {
		if open != nil && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("ingest %q: %w", ref, errdefs.ErrNotFound)
		}
		return fmt.Errorf("ingest %q: %w", ref, err)
	}
	if err := l.removeIngest(dir); err != nil {
		return fmt.Errorf("abort ingest %q: %w", ref, err)
	}
	return nil
}

// removeIngest removes the directory of an ingest. What a crash leaves of it
// is garbage for CleanIngests or for the next writer on the reference.
func (l *Local) removeIngest(dir string) error {
	return l.os.RemoveAll("ingest", dir)
}

// errNoIngest marks a directory that does not hold an ingest.
var errNoIngest = errors.New("not an ingest")

// readIngest reads the state of an ingest. fs.ErrNotExist or errNoIngest when
// it is not (or not fully) there.
func readIngest(dir string) (object.IngestStatus, error) {
	ref, err := readSmall(filepath.Join(dir, "ref"), MaxRef)
	if err != nil {
		return object.IngestStatus{}, err
	}
	// A ref that was cut short by a power cut belongs to another directory.
	if digest.FromBytes(ref).Encoded() != filepath.Base(dir) {
		return object.IngestStatus{}, fmt.Errorf("%s: its reference does not fit its name: %w", dir, errNoIngest)
	}
	data, err := os.Lstat(filepath.Join(dir, "data"))
	if err != nil {
		return object.IngestStatus{}, err
	}
	if !data.Mode().IsRegular() {
		return object.IngestStatus{}, fmt.Errorf("%s: data is not a regular file: %w", dir, errNoIngest)
	}
	status := object.IngestStatus{
		Ref:       string(ref),
		Offset:    data.Size(),
		Total:     readTotal(filepath.Join(dir, "total")),
		StartedAt: readTime(filepath.Join(dir, "startedat"), data.ModTime()),
		UpdatedAt: readTime(filepath.Join(dir, "updatedat"), data.ModTime()),
	}
	if data.ModTime().After(status.UpdatedAt) {
		status.UpdatedAt = data.ModTime()
	}
	return status, nil
}

// readSmall reads a file that may hold anything, up to limit bytes.
func readSmall(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: longer than %d bytes: %w", path, limit, errNoIngest)
	}
	return b, err
}

// readTotal is 0, not known, when the file is missing or damaged.
func readTotal(path string) int64 {
	b, err := readSmall(path, 32)
	if err != nil {
		return 0
	}
	total, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil || total < 0 {
		return 0
	}
	return total
}

// readTime falls back when the file is missing or damaged: a wrong time must
// not keep an ingest from being resumed.
func readTime(path string, fallback time.Time) time.Time {
	b, err := readSmall(path, 64)
	if err != nil {
		return fallback
	}
	var t time.Time
	if err := t.UnmarshalText(b); err != nil {
		return fallback
	}
	return t
}

// makeIngest makes the directory of a new ingest, but for its data. Nothing is
// synced: an ingest need not survive a power cut, and a damaged one is seen by
// readIngest.
func (l *Local) makeIngest(dir string, status object.IngestStatus) error {
	if err := l.os.Mkdir("ingest", dir, 0o755); err != nil {
		return err
	}
	started, err := status.StartedAt.MarshalText()
	if err != nil {
		return err
	}
	updated, err := status.UpdatedAt.MarshalText()
	if err != nil {
		return err
	}
	files := map[string][]byte{"ref": []byte(status.Ref), "startedat": started, "updatedat": updated}
	names := []string{"startedat", "updatedat", "ref"}
	if status.Total > 0 {
		files["total"] = strconv.AppendInt(nil, status.Total, 10)
		names = append(names, "total")
	}
	for _, name := range names {
		if err := l.os.WriteFile("ingest "+name, filepath.Join(dir, name), files[name], 0o644); err != nil {
			return err
		}
	}
	return nil
}
