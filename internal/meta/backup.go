package meta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/internal/boltx"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// Beside the database lie
//
//	meta.db.backup           a copy: a whole bolt file, then the 16 bytes of
//	                         backupMagic and the SHA-256 of what precedes them
//	meta.db.clean            the number of the last transaction before a clean
//	                         shutdown, in decimal: no more was written if the
//	                         database is still at it
//	meta.db.damaged-<time>   a database that was replaced, as it was found
const (
	backupSuffix = ".backup"
	cleanSuffix  = ".clean"
	backupMagic  = "berth backup v1\n"

	// backupEvery after the first commit a backup is made: that is what a lost
	// file costs at most. It is made earlier when there were backupAfter commits
	// and then none for backupQuiet: while much is written, a backup would take
	// the processor and the disk from it, and soon be out of date.
	backupEvery = 5 * time.Minute
	backupAfter = 2000
	backupQuiet = 2 * time.Second
)

// backups makes backups in the background. No timer runs while nothing is
// written.
type backups struct {
	run func() // in a goroutine of its own

	mu      sync.Mutex
	commits int       // since the last backup
	first   time.Time // of them
	seen    int       // of them, when the timer was set
	running bool
	closed  bool
	timer   *time.Timer // runs while commits > 0
	done    sync.WaitGroup
}

// committed counts a commit.
func (b *backups) committed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.commits++
	if b.closed || b.running {
		return
	}
	if b.commits == 1 {
		b.wait()
	} else if b.commits == backupAfter {
		b.seen = b.commits
		b.timer.Reset(backupQuiet)
	}
}

// wait sets the timer for the commits from now on; b.mu is held.
func (b *backups) wait() {
	b.first, b.seen = time.Now(), b.commits
	b.timer = time.AfterFunc(backupEvery, b.fire)
}

func (b *backups) fire() {
	b.mu.Lock()
	if b.closed || b.running {
		b.mu.Unlock()
		return
	}
	if left := backupEvery - time.Since(b.first); b.commits != b.seen && left > 0 {
		b.seen = b.commits
		b.timer.Reset(min(backupQuiet, left))
		b.mu.Unlock()
		return
	}
	b.running, b.commits = true, 0
	b.done.Add(1)
	defer b.done.Done()
	b.mu.Unlock()
	b.run()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running = false
	if b.commits > 0 && !b.closed {
		b.wait()
	}
}

// close ends background backups, waits for one that is being made, and tells
// whether another is due.
func (b *backups) close() (due bool) {
	b.mu.Lock()
	b.closed = true
	if b.timer != nil {
		b.timer.Stop()
	}
	b.mu.Unlock()
	b.done.Wait()
	return b.commits > 0
}

// writeBackup copies the database as it is now. The copy replaces the earlier
// one only when it is on disk and was found to be sound.
func (db *DB) writeBackup() (err error) {
	path := db.path + backupSuffix
	if err := writeAtomically(path, func(f *os.File) error {
		sum := sha256.New()
		if err := db.view(context.Background(), func(tx *bolt.Tx) error {
			_, err := tx.WriteTo(io.MultiWriter(f, sum))
			return err
		}); err != nil {
			return err
		}
		if err := verifyFile(f); err != nil {
			return fmt.Errorf("the copy is damaged: %w", err)
		}
		_, err := f.Write(append([]byte(backupMagic), sum.Sum(nil)...))
		return err
	}); err != nil {
		return fmt.Errorf("back up %s: %w", db.path, err)
	}
	return nil
}

// readBackup returns the bolt file in the backup of the database at path, and
// when it was made; errdefs.ErrNotFound when there is none, errdefs.ErrDataLoss
// when it is damaged too.
func readBackup(path string) (data []byte, made time.Time, err error) {
	path += backupSuffix
	data, err = os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, made, fmt.Errorf("backup %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, made, err
	}
	end := len(data) - len(backupMagic) - sha256.Size
	if end < 0 || string(data[end:end+len(backupMagic)]) != backupMagic {
		return nil, made, damaged("%s is no backup, or cut off", path)
	}
	sum := sha256.Sum256(data[:end])
	if !bytes.Equal(sum[:], data[end+len(backupMagic):]) {
		return nil, made, damaged("the checksum of %s does not match", path)
	}
	if _, err := boltx.VerifyNewest(data[:end]); err != nil {
		return nil, made, fmt.Errorf("backup %s: %w", path, err)
	}
	if st, err := os.Stat(path); err == nil {
		made = st.ModTime()
	}
	return data[:end], made, nil
}

// verifyFile looks through an open bolt file.
func verifyFile(f *os.File) (err error) {
	defer boltx.CatchFaults(&err)()
	data, unmap, err := boltx.Map(f)
	if err != nil {
		return err
	}
	defer unmap()
	_, err = boltx.VerifyNewest(data)
	return err
}

func writeCleanMark(path string, tx uint64) error {
	return writeAtomically(path+cleanSuffix, func(f *os.File) error {
		_, err := fmt.Fprintln(f, tx)
		return err
	})
}

// cleanMark returns the last transaction before the last clean shutdown, 0
// when there was none.
func cleanMark(path string) uint64 {
	b, err := os.ReadFile(path + cleanSuffix)
	if err != nil {
		return 0
	}
	tx, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return tx
}

// writeAtomically replaces a file by one that fn writes. After a crash there
// is the old file or the new one, whole; a temporary one may be left beside
// them, and is overwritten the next time.
func writeAtomically(path string, fn func(*os.File) error) (err error) {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(tmp))
		}
	}()
	if err := fn(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	// Too late to undo: what fails from here on leaves the new file.
	if err := errors.Join(f.Close(), syncDir(filepath.Dir(path))); err != nil {
		return fmt.Errorf("make %s durable: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
