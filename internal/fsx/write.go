package fsx

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// WriteAtomic replaces a file durably: after a crash the old or the new bytes
// are there whole, and when it has returned nil the new ones are.
//
// Steps: temporary file beside it, write, sync, rename, sync of the directory.
func (o *OS) WriteAtomic(label, path string, data []byte, perm os.FileMode) error {
	if err := o.replace(label, path, data, perm, true); err != nil {
		return err
	}
	return o.SyncDir(label, filepath.Dir(path))
}

// Replace replaces a file atomically towards readers, without syncing it: for
// files whose loss in a power cut does no harm (below /run).
func (o *OS) Replace(label, path string, data []byte, perm os.FileMode) error {
	return o.replace(label, path, data, perm, false)
}

// WriteIfChanged is WriteAtomic unless the file has these bytes already. It
// tells whether it wrote.
func (o *OS) WriteIfChanged(label, path string, data []byte, perm os.FileMode) (bool, error) {
	same, err := hasBytes(path, data)
	if err != nil || same {
		return false, err
	}
	return true, o.WriteAtomic(label, path, data, perm)
}

// hasBytes reads no more than it must of a file that may be anything.
func hasBytes(path string, data []byte) (bool, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() {
		return false, fmt.Errorf("%s is not a regular file", path)
	}
	if info.Size() != int64(len(data)) {
		return false, nil
	}
	have, err := os.ReadFile(path)
	return err == nil && bytes.Equal(have, data), err
}

func (o *OS) replace(label, path string, data []byte, perm os.FileMode, durable bool) (err error) {
	tmp := path + ".tmp"
	f, err := o.OpenFile(label, tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp)
		}
	}()
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return o.Rename(label, tmp, path)
}
