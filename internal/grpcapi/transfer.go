package grpcapi

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"berth/internal/registry"
	"berth/internal/transfer"
	"berth/internal/wire"

	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	api "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// transfers is the transfer service: what is asked for follows from the types
// of source and destination.
type transfers struct {
	transferapi.UnimplementedTransferServer
	engine  *transfer.Service
	streams *streams
	// registry is what the options of every remote begin with.
	registry func() registry.Options
	log      *slog.Logger
}

func (s *transfers) Transfer(ctx context.Context, req *transferapi.TransferRequest) (*emptypb.Empty, error) {
	source, err := unpackEnd(req.Source)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	destination, err := unpackEnd(req.Destination)
	if err != nil {
		return nil, fmt.Errorf("destination: %w", err)
	}
	call := &transferCall{transfers: s, scope: ScopeOf(ctx)}
	defer call.close()
	if err := call.reportTo(req.Options.GetProgressStream()); err != nil {
		return nil, err
	}
	return empty(call.run(ctx, source, destination))
}

// unpackEnd decodes a source or destination, errdefs.ErrNotImplemented when it
// is of no known type.
func unpackEnd(a *anypb.Any) (proto.Message, error) {
	for _, m := range []proto.Message{&api.OCIRegistry{}, &api.ImageStore{}, &api.ImageImportStream{}, &api.ImageExportStream{}} {
		if a.MessageName() == m.ProtoReflect().Descriptor().FullName() {
			return m, unpack(a, m)
		}
	}
	return nil, fmt.Errorf("transfers know no %q: %w", a.GetTypeUrl(), errdefs.ErrNotImplemented)
}

// transferCall is one call of Transfer with the streams that it has taken.
type transferCall struct {
	*transfers
	scope    Scope
	progress transfer.ProgressFunc
	closers  []func()
}

// close lets go of the streams, the last taken first.
func (c *transferCall) close() {
	for i := len(c.closers) - 1; i >= 0; i-- {
		c.closers[i]()
	}
}

func (c *transferCall) take(name string) (*stream, error) {
	st, err := c.streams.take(c.scope.Namespace, name)
	if err != nil {
		return nil, err
	}
	c.closers = append(c.closers, st.Close)
	return st, nil
}

func (c *transferCall) reportTo(name string) error {
	if name == "" {
		return nil
	}
	st, err := c.take(name)
	if err != nil {
		return fmt.Errorf("progress stream: %w", err)
	}
	r := newReporter(st)
	c.progress = r.report
	c.closers = append(c.closers, r.close)
	return nil
}

func (c *transferCall) run(ctx context.Context, source, destination proto.Message) error {
	switch from := source.(type) {
	case *api.OCIRegistry:
		if to, ok := destination.(*api.ImageStore); ok {
			return c.pull(ctx, from, to)
		}
	case *api.ImageStore:
		switch to := destination.(type) {
		case *api.OCIRegistry:
			return c.push(ctx, from, to)
		case *api.ImageExportStream:
			return c.export(ctx, from, to)
		case *api.ImageStore:
			_, err := c.engine.Tag(ctx, c.scope.Namespace, from.Name, to.Name, c.progress)
			return err
		}
	case *api.ImageImportStream:
		switch to := destination.(type) {
		case *api.ImageStore:
			return c.importImages(ctx, from, to)
		case *api.ImageExportStream:
			return c.echo(ctx, from, to)
		}
	}
	return fmt.Errorf("transfer from %s to %s: %w", source.ProtoReflect().Descriptor().FullName(), destination.ProtoReflect().Descriptor().FullName(), errdefs.ErrNotImplemented)
}

func (c *transferCall) pull(ctx context.Context, from *api.OCIRegistry, to *api.ImageStore) error {
	remote, err := c.remote(from)
	if err != nil {
		return err
	}
	_, err = c.engine.Pull(ctx, c.scope.Namespace, c.scope.Lease, remote, imageTarget(to), c.progress)
	return err
}

func (c *transferCall) push(ctx context.Context, from *api.ImageStore, to *api.OCIRegistry) error {
	remote, err := c.remote(to)
	if err != nil {
		return err
	}
	return c.engine.Push(ctx, c.scope.Namespace, c.scope.Lease, from.Name, wire.PlatformsFromProto(from.Platforms), remote, c.progress)
}

func (c *transferCall) importImages(ctx context.Context, from *api.ImageImportStream, to *api.ImageStore) error {
	st, err := c.take(from.Stream)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, st.Close)() // ends a read that waits for the client
	_, err = c.engine.Import(ctx, c.scope.Namespace, c.scope.Lease, &byteReader{stream: st},
		transfer.ImportOptions{MediaType: from.MediaType, ForceCompress: from.ForceCompress}, imageTarget(to), c.progress)
	return err
}

func (c *transferCall) export(ctx context.Context, from *api.ImageStore, to *api.ImageExportStream) error {
	names, err := exportNames(from)
	if err != nil {
		return err
	}
	st, err := c.take(to.Stream)
	if err != nil {
		return err
	}
	return c.engine.Export(ctx, c.scope.Namespace, names, newByteWriter(ctx, st), transfer.ExportOptions{
		MediaType:            to.MediaType,
		Platforms:            wire.PlatformsFromProto(to.Platforms),
		AllPlatforms:         to.AllPlatforms,
		SkipDockerManifest:   to.SkipCompatibilityManifest,
		SkipNonDistributable: to.SkipNonDistributable,
	}, c.progress)
}

// echo sends a client's bytes back to it: clients try their streams with it.
func (c *transferCall) echo(ctx context.Context, from *api.ImageImportStream, to *api.ImageExportStream) error {
	in, err := c.take(from.Stream)
	if err != nil {
		return err
	}
	out, err := c.take(to.Stream)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, in.Close)()
	_, err = io.Copy(newByteWriter(ctx, out), &byteReader{stream: in})
	return err
}

// exportNames lists the images that a source names.
func exportNames(from *api.ImageStore) ([]string, error) {
	var names []string
	if from.Name != "" {
		names = append(names, from.Name)
	}
	for _, ref := range from.ExtraReferences {
		if ref.GetIsPrefix() {
			return nil, fmt.Errorf("export of all images with the prefix %q: %w", ref.GetName(), errdefs.ErrNotImplemented)
		}
		names = append(names, ref.GetName())
	}
	return names, nil
}

func imageTarget(to *api.ImageStore) transfer.ImageTarget {
	target := transfer.ImageTarget{
		Name:          to.Name,
		Labels:        to.Labels,
		Platforms:     wire.PlatformsFromProto(to.Platforms),
		AllMetadata:   to.AllMetadata,
		ManifestLimit: int(to.ManifestLimit),
	}
	for _, u := range to.Unpacks {
		target.Unpacks = append(target.Unpacks, transfer.UnpackTarget{
			Platform:    wire.PlatformFromProto(u.GetPlatform()),
			Snapshotter: u.GetSnapshotter(),
		})
	}
	for _, ref := range to.ExtraReferences {
		target.ExtraReferences = append(target.ExtraReferences, transfer.Reference{
			Name:            ref.GetName(),
			IsPrefix:        ref.GetIsPrefix(),
			AllowOverwrite:  ref.GetAllowOverwrite(),
			AddDigest:       ref.GetAddDigest(),
			SkipNamedDigest: ref.GetSkipNamedDigest(),
		})
	}
	return target
}

// remote is the registry's end of a transfer as the client describes it.
func (c *transferCall) remote(r *api.OCIRegistry) (*registry.Remote, error) {
	resolver := r.GetResolver()
	var opts registry.Options
	if c.registry != nil {
		opts = c.registry()
	}
	opts.Headers, opts.DefaultScheme, opts.Log = make(http.Header), resolver.GetDefaultScheme(), c.log
	if dir := resolver.GetHostDir(); dir != "" {
		opts.HostDir = dir
	}
	for k, v := range resolver.GetHeaders() {
		opts.Headers.Add(k, v)
	}
	switch resolver.GetHttpDebug() {
	case api.HTTPDebug_DEBUG:
		opts.HTTPDump = true
	case api.HTTPDebug_TRACE:
		opts.HTTPTrace = true
	case api.HTTPDebug_BOTH:
		opts.HTTPDump, opts.HTTPTrace = true, true
	}
	if name := resolver.GetAuthStream(); name != "" {
		st, err := c.take(name)
		if err != nil {
			return nil, fmt.Errorf("credentials stream: %w", err)
		}
		opts.Credentials = newCredentials(st).get
	}
	remote, err := registry.NewRemote(r.Reference, opts)
	if err != nil {
		return nil, err
	}
	c.closers = append(c.closers, func() { _ = remote.Close() })
	return remote, nil
}
