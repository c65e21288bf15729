package content

import (
	"context"
	_ "crypto/sha256" // digest algorithms of the blobs
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"berth/internal/filter"
	"berth/internal/fsx"
	"berth/internal/object"
	"berth/internal/par"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Local is a Store in a directory, in the layout of containerd's local store:
//
//	blobs/<algorithm>/<hex>       a committed blob, mode 0444; its modification
//	                              time is that of the commit
//	ingest/<hex sha256 of ref>/   a blob being written
//	    ref                       the reference, raw
//	    startedat, updatedat      RFC 3339 times
//	    total                     the expected size in decimal; absent when not known
//	    data                      the bytes so far
//
// updatedat is written when a writer closes; between, the modification time of
// data tells more. A directory below ingest without ref or data is what a crash
// left of one that was being made or removed; see CleanIngests.
//
// An ingest gets its directory when its writer is closed without a commit or
// goes on after nameSize bytes. Until then it is a file without a name, known to this
// process alone, and a crash leaves nothing of it. So a small blob costs two
// syncs and hardly more. (Where there are no such files it has its directory
// from the start.)
//
// Local keeps no labels: package meta does. Update is
// errdefs.ErrFailedPrecondition, and Commit ignores labels.
//
// One process at a time uses a directory. Locks: one per reference, held by
// its writer from open to close; nothing waits for it. mu is held for map
// look-ups only, and before a writer's own mu.
type Local struct {
	root string
	os   *fsx.OS

	refs    par.Locks[string]
	buffers sync.Pool // of *[copyBuffer]byte

	mu       sync.Mutex
	dirSyncs map[string]*par.Batch   // by blob directory; present when it exists
	nameless map[string]*localWriter // by reference: open, without a directory
}

// LocalOptions of OpenLocal.
type LocalOptions struct {
	// Root is the directory, made when it is not there.
	Root string
	// OS performs the operations that change files; nil for the real one.
	OS *fsx.OS
}

// OpenLocal opens or makes a store. There is nothing to close.
func OpenLocal(opts LocalOptions) (*Local, error) {
	l := &Local{
		root: opts.Root, os: opts.OS,
		dirSyncs: make(map[string]*par.Batch), nameless: make(map[string]*localWriter),
	}
	l.buffers.New = func() any { return new([copyBuffer]byte) }
	for _, dir := range []string{l.root, filepath.Join(l.root, "ingest"), filepath.Join(l.root, "blobs")} {
		if err := l.os.MkdirAll("store", dir, 0o755); err != nil {
			return nil, fmt.Errorf("content store: %w", err)
		}
	}
	return l, nil
}

// isEmptyDigest tells whether a blob of no bytes may have the digest.
func isEmptyDigest(d digest.Digest) bool { return d == d.Algorithm().FromBytes(nil) }

// blobPath is where the blob is or would be. It checks the digest, so that a
// hostile one cannot name another file.
func (l *Local) blobPath(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %.200q: %w: %w", string(d), err, errdefs.ErrInvalidArgument)
	}
	return filepath.Join(l.root, "blobs", d.Algorithm().String(), d.Encoded()), nil
}

// notFound gives the error of a file operation on a blob its kind.
func notFound(d digest.Digest, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("content %s: %w", d, errdefs.ErrNotFound)
	}
	return fmt.Errorf("content %s: %w", d, err)
}

func blobInfo(d digest.Digest, fi fs.FileInfo) object.BlobInfo {
	return object.BlobInfo{Digest: d, Size: fi.Size(), CreatedAt: fi.ModTime(), UpdatedAt: fi.ModTime()}
}

func (l *Local) Info(_ context.Context, d digest.Digest) (object.BlobInfo, error) {
	path, err := l.blobPath(d)
	if err != nil {
		return object.BlobInfo{}, err
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return object.BlobInfo{}, notFound(d, err)
	}
	if !fi.Mode().IsRegular() {
		return object.BlobInfo{}, fmt.Errorf("content %s: %s is not a regular file: %w", d, path, errdefs.ErrDataLoss)
	}
	return blobInfo(d, fi), nil
}

// whole tells whether the blob is there with a size it may have: size when
// that is > 0, and none but the empty blob has no bytes. What is not whole was
// cut short by a crash and may be replaced.
func (l *Local) whole(ctx context.Context, d digest.Digest, size int64) (bool, error) {
	info, err := l.Info(ctx, d)
	switch {
	case errdefs.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, err
	case size > 0 && info.Size != size:
		return false, nil
	default:
		return info.Size > 0 || isEmptyDigest(d), nil
	}
}

type localReader struct {
	file *os.File
	size int64
}

func (r *localReader) ReadAt(p []byte, off int64) (int, error) { return r.file.ReadAt(p, off) }
func (r *localReader) Size() int64                             { return r.size }
func (r *localReader) Close() error {
	if err := r.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

func (l *Local) ReaderAt(_ context.Context, desc ispec.Descriptor) (ReaderAt, error) {
	path, err := l.blobPath(desc.Digest)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, notFound(desc.Digest, err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file: %w", path, errdefs.ErrDataLoss)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("content %s: %w", desc.Digest, err)
	}
	return &localReader{file: f, size: fi.Size()}, nil
}

func (l *Local) Update(ctx context.Context, info object.BlobInfo, _ ...string) (object.BlobInfo, error) {
	if _, err := l.Info(ctx, info.Digest); err != nil {
		return object.BlobInfo{}, err
	}
	return object.BlobInfo{}, fmt.Errorf("content %s: the local store keeps no labels: %w", info.Digest, errdefs.ErrFailedPrecondition)
}

// Walk calls fn in the order of the digests. It skips what is not a blob, and
// what is deleted meanwhile.
func (l *Local) Walk(ctx context.Context, fn func(object.BlobInfo) error, filters ...string) error {
	match, err := filter.ParseAll(filters...)
	if err != nil {
		return err
	}
	return l.eachBlob(ctx, func(info object.BlobInfo) error {
		if match.Match(AdaptInfo(info)) {
			return fn(info)
		}
		return nil
	})
}

func (l *Local) eachBlob(ctx context.Context, fn func(object.BlobInfo) error) error {
	algorithms, err := os.ReadDir(filepath.Join(l.root, "blobs"))
	if err != nil {
		return fmt.Errorf("list content: %w", err)
	}
	for _, a := range algorithms {
		alg := digest.Algorithm(a.Name())
		if !a.IsDir() || !alg.Available() {
			continue
		}
		entries, err := os.ReadDir(filepath.Join(l.root, "blobs", a.Name()))
		if err != nil {
			return fmt.Errorf("list content: %w", err)
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			d := digest.NewDigestFromEncoded(alg, e.Name())
			if !e.Type().IsRegular() || d.Validate() != nil {
				continue
			}
			fi, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("list content: %w", err)
			}
			if err := fn(blobInfo(d, fi)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Delete removes a blob. It is not synced: should a power cut bring the blob
// back, the garbage collector removes it again.
func (l *Local) Delete(_ context.Context, d digest.Digest) error {
	path, err := l.blobPath(d)
	if err != nil {
		return err
	}
	if err := l.os.Remove("blob", path); err != nil {
		return notFound(d, err)
	}
	return nil
}

// diskError adds the kind, and what to do, to the error of a write.
func diskError(root string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("no space left for content, free some below %s: %w: %w", root, err, errdefs.ErrResourceExhausted)
	}
	return err
}
