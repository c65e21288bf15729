package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"syscall"

	"berth/internal/content"
	"berth/internal/diff"
	"berth/internal/image"
	"berth/internal/object"
	"berth/internal/trace"
	"berth/internal/transfer/report"
	"berth/internal/transfer/ring"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fetchAttempts is how often a blob is fetched whose bytes turn out to be wrong.
const fetchAttempts = 3

// source is where blobs come from that are not in the store: a registry, or
// nowhere.
type source interface {
	Fetch(ctx context.Context, desc ispec.Descriptor, offset int64) (io.ReadCloser, error)
	// Distrust is told when the bytes that came were wrong.
	Distrust(d digest.Digest)
}

// labelsFor returns the labels that a blob gets when it is stored; existing
// are those that it has.
type labelsFor func(existing map[string]string) map[string]string

// fetchPlan is a blob to be fetched, and what becomes of it.
type fetchPlan struct {
	desc   ispec.Descriptor
	from   source
	labels labelsFor
	job    *report.Job
	// consume reads a stream to its end; see fetch.
	consume func(ctx context.Context, r io.Reader) error
	// proven are labels that say what only a consumer that was content has
	// found out; may be nil.
	proven map[string]string
	// reset undoes what consume did to be ready for another stream.
	reset func(ctx context.Context) error
}

// withProven is labelsFor of what is known once the consumer is content.
func (p fetchPlan) withProven(existing map[string]string) map[string]string {
	out := maps.Clone(p.proven)
	if p.labels != nil {
		if out == nil {
			out = map[string]string{}
		}
		maps.Copy(out, p.labels(existing))
	}
	return out
}

// fetch makes sure that a blob is in the store. Where the plan has a consumer,
// it is given the bytes as they arrive, and the blob is committed only when the
// consumer is content too. streamed is false when it was not asked, since the
// blob, or a part of it, was there already: then it is to be read from the store.
//
// Bytes with a wrong digest are fetched again, from another host if there is
// one. That is why a consumer that finds fault with what it is given does not
// stop the stream: only its end tells whether the image is bad, or the bytes.
func (x *session) fetch(ctx context.Context, p fetchPlan) (streamed bool, err error) {
	ctx, span := trace.Start(ctx, "fetch", trace.String("digest", p.desc.Digest.String()), trace.Int("size", p.desc.Size))
	defer func() { span.End(err) }()
	w, unlock, err := x.lockedWriter(ctx, p.desc)
	if unlock != nil {
		defer unlock()
	}
	if errdefs.IsAlreadyExists(err) {
		p.job.Done("already exists")
		return false, x.updateLabels(ctx, p.desc.Digest, p.labels)
	}
	if err != nil {
		return false, err
	}
	defer func() {
		left, _ := w.Status() // nothing, once a commit was tried
		w.Close()
		if err != nil {
			x.discard(ctx, p.desc, left.Offset, err)
		}
	}()
	st, err := w.Status()
	if err != nil {
		return false, err
	}
	if st.Offset > p.desc.Size {
		if err := w.Truncate(0); err != nil {
			return false, err
		}
		st.Offset = 0
	}
	resumed := st.Offset > 0
	var got digest.Digest
	for attempt := 1; ; attempt++ {
		offset := int64(0)
		if resumed {
			offset = st.Offset
		}
		streamed = p.consume != nil && !resumed
		var consumed error
		if consumed, err = x.stream(ctx, p, w, offset, streamed); err != nil {
			return streamed, err
		}
		if got = w.Digest(); got == p.desc.Digest {
			if consumed != nil {
				return streamed, consumed
			}
			break
		}
		// What is there is wrong: nobody shall resume it.
		if err := w.Truncate(0); err != nil {
			return streamed, err
		}
		if !resumed {
			p.from.Distrust(p.desc.Digest)
		}
		if attempt >= fetchAttempts {
			return streamed, fmt.Errorf("blob %s: the bytes that came have the digest %s: %w", p.desc.Digest, got, errdefs.ErrFailedPrecondition)
		}
		if streamed && p.reset != nil {
			if err := p.reset(ctx); err != nil {
				return streamed, err
			}
		}
		resumed = false
	}
	labels := p.labels
	if streamed {
		labels = p.withProven
	}
	var set map[string]string
	if labels != nil {
		set = labels(nil)
	}
	err = w.Commit(ctx, p.desc.Size, p.desc.Digest, set)
	if errdefs.IsAlreadyExists(err) {
		err = x.updateLabels(ctx, p.desc.Digest, labels)
	}
	if err != nil {
		return streamed, fmt.Errorf("commit blob %s: %w", p.desc.Digest, err)
	}
	p.job.Done("complete")
	return streamed, nil
}

// discard removes the ingest of a fetch that failed, under the blob's lock,
// unless another pull could take it up: what is empty, what belongs to an image
// that is bad in itself, and what a full disk needs more does not stay.
func (x *session) discard(ctx context.Context, desc ispec.Descriptor, offset int64, err error) {
	if ctx.Err() != nil {
		err = context.Cause(ctx) // it may be another layer that was bad
	}
	bad := errdefs.IsFailedPrecondition(err) || errdefs.IsInvalidArgument(err) || errdefs.IsDataLoss(err) ||
		errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
	if offset > 0 && !bad {
		return
	}
	// One that cannot be removed expires with its lease.
	_ = undo(ctx, func(ctx context.Context) error { return x.stores.Content.Abort(ctx, image.RefKey(desc)) })
}

// stream copies one blob from its source into the writer and, if told to, to
// the consumer. err is what went wrong with the bytes, consumed what the
// consumer had to say.
func (x *session) stream(ctx context.Context, p fetchPlan, w content.Writer, offset int64, tee bool) (consumed, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.job.Set(offset)
	r, err := x.open(ctx, p, offset)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	blocks := ring.New(&x.blocks)
	done := make(chan error, 1)
	if tee {
		go func() {
			defer blocks.Leave()
			err := p.consume(ctx, blocks)
			if hostFault(err) {
				cancel(err)
			}
			done <- err
		}()
	} else {
		blocks.Leave()
		done <- nil
	}
	err = copyBlocks(r, w, blocks, p.job)
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	blocks.Close(err)
	consumed = <-done
	if err == nil && hostFault(consumed) {
		err = consumed
	}
	return consumed, err
}

func (x *session) open(ctx context.Context, p fetchPlan, offset int64) (io.ReadCloser, error) {
	if len(p.desc.Data) > 0 && int64(len(p.desc.Data)) == p.desc.Size && p.desc.Digest.Algorithm().FromBytes(p.desc.Data) == p.desc.Digest {
		return io.NopCloser(bytes.NewReader(p.desc.Data[offset:])), nil
	}
	return p.from.Fetch(ctx, p.desc, offset)
}

// hostFault tells whether an unpack failed for a reason that has nothing to do
// with the bytes: a full disk, say, or that it was cancelled.
func hostFault(err error) bool {
	_, ok := errors.AsType[syscall.Errno](err)
	return ok || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// copyBlocks moves a stream into the writer and through the ring.
func copyBlocks(r io.Reader, w io.Writer, blocks *ring.Ring, j *report.Job) error {
	for {
		b := blocks.Block()
		for b.N < ring.Size {
			n, err := r.Read(b.Buf[b.N:])
			b.N += n
			j.Add(n)
			if err == nil {
				continue
			}
			if b.N > 0 {
				if _, werr := w.Write(b.Buf[:b.N]); werr != nil {
					blocks.Drop(b)
					return fmt.Errorf("write to the content store: %w", werr)
				}
				blocks.Write(b)
			} else {
				blocks.Drop(b)
			}
			if err == io.EOF {
				return nil
			}
			return err
		}
		if _, err := w.Write(b.Buf[:b.N]); err != nil {
			blocks.Drop(b)
			return fmt.Errorf("write to the content store: %w", err)
		}
		blocks.Write(b)
	}
}

// updateLabels sets labels that depend on those that a blob has.
func (x *session) updateLabels(ctx context.Context, d digest.Digest, labels labelsFor) error {
	if labels == nil {
		return nil
	}
	info, err := x.stores.Content.Info(ctx, d)
	if err != nil {
		return err
	}
	want := labels(info.Labels)
	if len(want) == 0 {
		return nil
	}
	return content.AddLabels(ctx, x.stores.Content, d, want)
}

// unpackFrom unpacks a stream into the mounts and checks the diff ID.
func (x *session) unpackFrom(ctx context.Context, r io.Reader, desc ispec.Descriptor, mounts []object.Mount, apart bool, want digest.Digest) (diff.Unpacked, error) {
	out, err := x.opts.Differ.Unpack(ctx, desc.MediaType, r, mounts, apart)
	if err != nil {
		return out, fmt.Errorf("unpack layer %s: %w", desc.Digest, err)
	}
	return out, checkDiffID(desc, out, want)
}

func checkDiffID(desc ispec.Descriptor, out diff.Unpacked, want digest.Digest) error {
	if out.DiffID != want {
		return fmt.Errorf("layer %s unpacks to the diff ID %s, but the image config says %s: %w", desc.Digest, out.DiffID, want, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// unpackStored unpacks a layer that is in the store.
func (x *session) unpackStored(ctx context.Context, desc ispec.Descriptor, mounts []object.Mount, apart bool, want digest.Digest, j *report.Job) (diff.Unpacked, error) {
	if applier := x.stores.Applier; applier != nil {
		j.Extracting()
		tar, err := applier.Apply(ctx, desc, mounts, diff.ApplyOptions{Sync: x.opts.SyncFS})
		if err != nil {
			return diff.Unpacked{}, fmt.Errorf("unpack layer %s: %w", desc.Digest, err)
		}
		out := diff.Unpacked{DiffID: tar.Digest, Size: tar.Size}
		return out, checkDiffID(desc, out, want)
	}
	ra, err := x.stores.Content.ReaderAt(ctx, desc)
	if err != nil {
		return diff.Unpacked{}, fmt.Errorf("blob of the layer: %w", err)
	}
	defer ra.Close()
	j.Extracting()
	return x.unpackFrom(ctx, j.Reader(ctx, io.NewSectionReader(ra, 0, ra.Size())), desc, mounts, apart, want)
}
