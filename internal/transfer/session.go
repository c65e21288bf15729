package transfer

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"berth/internal/content"
	"berth/internal/failpoint"
	"berth/internal/image"
	"berth/internal/object"
	"berth/internal/snapshot"
	"berth/internal/transfer/report"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// leaseTime is how long a lease of ours protects what a transfer that died
// (with its daemon) had in work.
const leaseTime = 24 * time.Hour

// undoTime bounds what is cleaned up after a transfer failed or was cancelled.
const undoTime = 30 * time.Second

// session is one transfer at work in a namespace, under a lease.
type session struct {
	*Service
	namespace string
	stores    Stores
	rep       *report.Reporter

	downloads *semaphore.Weighted
	unpacks   *semaphore.Weighted
	blocks    sync.Pool

	mu      sync.Mutex
	syncers map[string]snapshot.Syncer // by snapshotter: what must reach the disk
	chains  []chainLabel               // what is to be said when it has
}

// begin opens a session. A lease is made for it unless there is one; end
// removes that lease again, so it is to be called when what was transferred is
// referenced by a record.
func (s *Service) begin(ctx context.Context, namespace, lease string, rep *report.Reporter) (_ *session, end func(), err error) {
	end = func() {}
	if lease == "" {
		leases := s.opts.Scope(namespace, "").Leases
		l, err := leases.Create(ctx, object.Lease{
			ID:     "transfer-" + rand.Text(),
			Labels: map[string]string{"containerd.io/gc.expire": time.Now().Add(leaseTime).UTC().Format(time.RFC3339)},
		})
		if err != nil {
			return nil, nil, fmt.Errorf("make a lease for the transfer: %w", err)
		}
		lease = l.ID
		end = func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
			defer cancel()
			failpoint.Hit("transfer.before-end")
			// A lease that stays behind expires.
			_ = leases.Delete(ctx, lease, false)
		}
	}
	return &session{
		Service: s, namespace: namespace, stores: s.opts.Scope(namespace, lease), rep: rep,
		downloads: semaphore.NewWeighted(int64(s.opts.MaxDownloads)),
		unpacks:   semaphore.NewWeighted(int64(s.opts.MaxUnpacks)),
		syncers:   map[string]snapshot.Syncer{},
	}, end, nil
}

// blobLock is the key of the lock of a blob: one for all namespaces, since the
// bytes that one of them has fetched are there for the others, too, where the
// store shares them.
func blobLock(d digest.Digest) string { return "blob " + d.String() }

// read is an image.ReadFunc over the content store: it reads a small blob whole,
// and believes it only if it has the digest it is kept under.
func (x *session) read(ctx context.Context, desc ispec.Descriptor, limit int64) ([]byte, error) {
	ra, err := x.stores.Content.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer ra.Close()
	if ra.Size() > limit {
		return nil, fmt.Errorf("%s is %d bytes: at most %d are accepted: %w", desc.Digest, ra.Size(), limit, errdefs.ErrInvalidArgument)
	}
	b := make([]byte, ra.Size())
	if n, err := ra.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("read %s: %w", desc.Digest, err)
	}
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if got := desc.Digest.Algorithm().FromBytes(b); got != desc.Digest {
		return nil, fmt.Errorf("blob %s is damaged: its digest is %s: %w", desc.Digest, got, errdefs.ErrDataLoss)
	}
	return b, nil
}

// writer opens the ingest of a small blob and waits while somebody else has it
// open. errdefs.ErrAlreadyExists when the blob is there.
func (x *session) writer(ctx context.Context, desc ispec.Descriptor) (content.Writer, error) {
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		w, err := x.tryWriter(ctx, desc)
		if !errdefs.IsUnavailable(err) {
			return w, err
		}
		if err := x.awaitIngest(ctx, desc, pause); err != nil {
			return nil, err
		}
	}
}

// lockedWriter takes the lock of a blob, too, and waits without it: the ingest
// that a client has open is one namespace's, the lock is for all.
// errdefs.ErrAlreadyExists, with the lock, when the blob is there; no lock with
// any other error.
func (x *session) lockedWriter(ctx context.Context, desc ispec.Descriptor) (_ content.Writer, unlock func(), err error) {
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		if unlock, err = x.locks.Lock(ctx, blobLock(desc.Digest)); err != nil {
			return nil, nil, err
		}
		w, err := x.tryWriter(ctx, desc)
		if err == nil || errdefs.IsAlreadyExists(err) {
			return w, unlock, err
		}
		unlock()
		if !errdefs.IsUnavailable(err) {
			return nil, nil, err
		}
		if err := x.awaitIngest(ctx, desc, pause); err != nil {
			return nil, nil, err
		}
	}
}

// Pauses between two looks at an ingest that is busy.
const (
	firstPause = 5 * time.Millisecond
	maxPause   = 500 * time.Millisecond
)

func (x *session) tryWriter(ctx context.Context, desc ispec.Descriptor) (content.Writer, error) {
	return x.stores.Content.Writer(ctx, content.WriteOptions{Ref: image.RefKey(desc), Size: desc.Size, Expected: desc.Digest})
}

// awaitIngest waits a while for an ingest that a client has open: transfers of
// this daemon wait for each other at their locks.
func (x *session) awaitIngest(ctx context.Context, desc ispec.Descriptor, pause time.Duration) error {
	if _, gone := x.stores.Content.Status(ctx, image.RefKey(desc)); errdefs.IsUnavailable(gone) {
		return gone // not the ingest is busy: the store cannot be reached
	}
	select {
	case <-time.After(pause):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the ingest %s: %w", image.RefKey(desc), context.Cause(ctx))
	}
}

// writeBytes stores a small blob that is in memory and was verified.
func (x *session) writeBytes(ctx context.Context, desc ispec.Descriptor, b []byte, labels map[string]string) (err error) {
	w, err := x.writer(ctx, desc)
	if errdefs.IsAlreadyExists(err) {
		return content.AddLabels(ctx, x.stores.Content, desc.Digest, labels)
	}
	if err != nil {
		return err
	}
	defer func() {
		w.Close()
		if err != nil {
			x.discard(ctx, desc, 0, err)
		}
	}()
	there, err := complete(w, desc)
	if err != nil {
		return err
	}
	if !there {
		if _, err = io.Copy(w, bytes.NewReader(b)); err != nil {
			return fmt.Errorf("store %s: %w", desc.Digest, err)
		}
	}
	err = w.Commit(ctx, desc.Size, desc.Digest, labels)
	if errdefs.IsAlreadyExists(err) {
		return content.AddLabels(ctx, x.stores.Content, desc.Digest, labels)
	}
	return err
}

// complete tells whether an ingest that was opened holds the whole blob already:
// that of a blob which another namespace has does. What else it holds is removed.
func complete(w content.Writer, desc ispec.Descriptor) (bool, error) {
	st, err := w.Status()
	if err != nil || st.Offset == 0 {
		return false, err
	}
	if desc.Digest != "" && st.Offset == desc.Size && w.Digest() == desc.Digest {
		return true, nil
	}
	return false, w.Truncate(0)
}

// exists tells whether a blob is in the store, and then has the transfer's lease
// hold it: what an earlier transfer left is garbage until an image names it, and may
// go at any time. To be told that what one is about to write is there already is how
// a lease takes hold of it.
func (x *session) exists(ctx context.Context, d digest.Digest) (bool, error) {
	there := func() (bool, error) {
		_, err := x.stores.Content.Info(ctx, d)
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	}
	if ok, err := there(); !ok {
		return false, err
	}
	ref := "hold-" + rand.Text()[:16] + "-" + d.String()
	w, err := x.stores.Content.Writer(ctx, content.WriteOptions{Ref: ref, Expected: d})
	if errdefs.IsAlreadyExists(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("hold %s: %w", d, err)
	}
	// It has gone meanwhile.
	w.Close()
	if err := x.stores.Content.Abort(context.WithoutCancel(ctx), ref); err != nil && !errdefs.IsNotFound(err) {
		return false, err
	}
	return there()
}

// chainLabel is what the config of an image is to say of its chain of snapshots.
type chainLabel struct {
	config digest.Digest
	labels map[string]string
}

// mustSync notes that a snapshotter holds files that must reach the disk, and what
// may be said of them then.
func (x *session) mustSync(name string, sn snapshot.Backend, label chainLabel) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if s, ok := sn.(snapshot.Syncer); ok {
		x.syncers[name] = s
	}
	x.chains = append(x.chains, label)
}

// barrier returns when everything that was unpacked would survive a power cut.
//
// Only then do the configs name their chains: after a power cut a chain that
// nothing but a lease holds is one whose files may be lost, see the daemon's
// distrust; the lease has held it until here.
func (x *session) barrier(ctx context.Context) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := failpoint.Hit("transfer.before-barrier"); err != nil {
		return err
	}
	for name, s := range x.syncers {
		if err := s.Sync(ctx); err != nil {
			return fmt.Errorf("bring the layers in %s to the disk: %w", name, err)
		}
	}
	clear(x.syncers)
	failpoint.Hit("transfer.chain.before-label")
	for _, c := range x.chains {
		if err := content.AddLabels(ctx, x.stores.Content, c.config, c.labels); err != nil {
			return err
		}
	}
	x.chains = nil
	return nil
}

// record makes or replaces an image record.
func (x *session) record(ctx context.Context, img object.Image) (object.Image, error) {
	failpoint.Hit("transfer.before-record")
	for {
		out, err := x.stores.Images.Create(ctx, img)
		if !errdefs.IsAlreadyExists(err) {
			return out, err
		}
		out, err = x.stores.Images.Update(ctx, img)
		if !errdefs.IsNotFound(err) { // removed in between: make it again
			return out, err
		}
	}
}

// undo runs fn with a context that outlives the transfer's.
func undo(ctx context.Context, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	return fn(ctx)
}

// first prefers an error that says why over the cancellations that it caused.
func first(errs ...error) error {
	var cancelled error
	for _, err := range errs {
		switch {
		case err == nil:
		case errors.Is(err, context.Canceled):
			cancelled = err
		default:
			return err
		}
	}
	return cancelled
}
