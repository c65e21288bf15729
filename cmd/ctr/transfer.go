package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"berth/cmd/ctr/progress"
	"berth/internal/wire"

	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/platforms"
	"github.com/google/uuid"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
	"golang.org/x/term"
	"google.golang.org/protobuf/proto"
)

// stream is a side channel of a transfer, known to the daemon by its id.
type stream struct {
	id string
	streamingapi.Streaming_StreamClient
}

// openStream announces a stream; the daemon has it when this returns.
func (s *session) openStream(ctx context.Context, kind string) (*stream, error) {
	c, err := streamingapi.NewStreamingClient(s).Stream(ctx)
	if err != nil {
		return nil, err
	}
	st := &stream{id: kind + "-" + uuid.NewString(), Streaming_StreamClient: c}
	if err := st.sendMessage(&streamingapi.StreamInit{ID: st.id}); err != nil {
		return nil, err
	}
	if _, err := st.Recv(); err != nil {
		return nil, fmt.Errorf("opening a stream for the transfer: %w", err)
	}
	return st, nil
}

func (st *stream) sendMessage(m proto.Message) error {
	a, err := marshalAny(m)
	if err != nil {
		return err
	}
	return st.Send(a)
}

// receiveMessage decodes the next message into m. io.EOF at the end.
func (st *stream) receiveMessage(m proto.Message) error {
	a, err := st.Recv()
	if err != nil {
		return err
	}
	if name := string(m.ProtoReflect().Descriptor().FullName()); a.TypeUrl != name {
		return fmt.Errorf("the daemon sent %s in a stream of %s", a.TypeUrl, name)
	}
	return proto.Unmarshal(a.Value, m)
}

// Flow control of byte streams: the receiver grants windows, the sender keeps
// messages to maxChunk.
const (
	window   = 4 << 20
	maxChunk = 32 << 10
)

// sendBytes feeds r to the daemon as far as it grants.
func (st *stream) sendBytes(r io.Reader) error {
	defer st.CloseSend()
	buf := make([]byte, maxChunk)
	granted := 0
	for {
		for granted <= 0 {
			var w transfer.WindowUpdate
			if err := st.receiveMessage(&w); err != nil {
				return ignoreEOF(err)
			}
			granted += int(w.Update)
		}
		n, err := r.Read(buf[:min(len(buf), granted)])
		if n > 0 {
			if err := st.sendMessage(&transfer.Data{Data: buf[:n]}); err != nil {
				return ignoreEOF(err) // the daemon has what it needs, or says why not
			}
			granted -= n
		}
		if err != nil {
			return ignoreEOF(err)
		}
	}
}

// receiveBytes writes what the daemon sends to w until it is done.
func (st *stream) receiveBytes(w io.Writer) error {
	granted := 0
	for {
		if granted < window/2 {
			if err := st.sendMessage(&transfer.WindowUpdate{Update: window}); err == nil {
				granted += window
			}
		}
		var d transfer.Data
		if err := st.receiveMessage(&d); err != nil {
			return ignoreEOF(err)
		}
		granted -= len(d.Data)
		if _, err := w.Write(d.Data); err != nil {
			return err
		}
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// progressTail is how long reports may still come in when the transfer is over.
const progressTail = 200 * time.Millisecond

// transfer asks the daemon to move source to destination and shows the progress
// on out, nil for nowhere.
func (s *session) transfer(ctx context.Context, source, destination proto.Message, out *os.File) (err error) {
	req := &transferapi.TransferRequest{}
	if req.Source, err = marshalAny(source); err != nil {
		return err
	}
	if req.Destination, err = marshalAny(destination); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if out != nil {
		st, err := s.openStream(ctx, "progress")
		if err != nil {
			return err
		}
		req.Options = &transferapi.TransferOptions{ProgressStream: st.id}
		display, shown := progress.New(out), make(chan struct{})
		go func() {
			defer close(shown)
			for {
				var p transfer.Progress
				if st.receiveMessage(&p) != nil {
					return
				}
				display.Update(&p)
			}
		}()
		defer func() {
			st.CloseSend()
			select {
			case <-shown:
			case <-time.After(progressTail):
				cancel()
				<-shown
			}
			display.Close(err != nil)
		}()
		_, err = transferapi.NewTransferClient(s).Transfer(ctx, req)
		return err
	}
	_, err = transferapi.NewTransferClient(s).Transfer(ctx, req)
	return err
}

// registryFlags are those of commands that talk to a registry.
func registryFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "skip-verify", Aliases: []string{"k"}, Usage: "Skip SSL certificate validation"},
		&cli.BoolFlag{Name: "plain-http", Usage: "Allow connections using plain HTTP"},
		&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "User[:password] Registry user and password"},
		&cli.StringFlag{Name: "refresh", Usage: "Refresh token for authorization server"},
		&cli.StringFlag{Name: "hosts-dir", Usage: "Custom hosts configuration directory"},
		&cli.StringFlag{Name: "tlscacert", Usage: "Path to TLS root CA"},
		&cli.StringFlag{Name: "tlscert", Usage: "Path to TLS client certificate"},
		&cli.StringFlag{Name: "tlskey", Usage: "Path to TLS client key"},
		&cli.BoolFlag{Name: "http-dump", Usage: "Dump all HTTP request/responses when interacting with container registry"},
		&cli.BoolFlag{Name: "http-trace", Usage: "Enable HTTP tracing for registry interactions"},
	}
}

// needsLocal refuses flags that the transfer service has no field for, unless
// the transfer is one of ctr's own.
func needsLocal(cmd *cli.Command, names ...string) error {
	hints := map[string]string{
		"skip-verify": "set skip_verify in hosts.toml and name its directory with --hosts-dir",
		"tlscacert":   "set ca in hosts.toml and name its directory with --hosts-dir",
		"tlscert":     "set client in hosts.toml and name its directory with --hosts-dir",
		"tlskey":      "set client in hosts.toml and name its directory with --hosts-dir",
	}
	if cmd.Bool("local") {
		return nil
	}
	for _, name := range names {
		if !cmd.IsSet(name) {
			continue
		}
		if hint := hints[name]; hint != "" {
			return invalid("--%s needs --local; or %s", name, hint)
		}
		return invalid("--%s needs --local", name)
	}
	return nil
}

// registry describes the remote image ref, with the credentials and other
// settings that the flags give.
func (s *session) registry(ctx context.Context, cmd *cli.Command, ref string) (*transfer.OCIRegistry, error) {
	if ref == "" {
		return nil, invalid("an image reference must be provided, such as docker.io/library/alpine:latest")
	}
	r := &transfer.RegistryResolver{HostDir: cmd.String("hosts-dir")}
	if cmd.Bool("plain-http") {
		r.DefaultScheme = "http"
	}
	dump, trace := cmd.Bool("http-dump"), cmd.Bool("http-trace")
	switch {
	case dump && trace:
		r.HttpDebug = transfer.HTTPDebug_BOTH
	case dump:
		r.HttpDebug = transfer.HTTPDebug_DEBUG
	case trace:
		r.HttpDebug = transfer.HTTPDebug_TRACE
	}
	if dump || trace {
		st, err := s.openStream(ctx, "logs")
		if err != nil {
			return nil, err
		}
		r.LogsStream = st.id
		go st.receiveBytes(os.Stderr)
	}
	answer, err := credentials(cmd)
	if err != nil {
		return nil, err
	}
	if answer != nil {
		st, err := s.openStream(ctx, "creds")
		if err != nil {
			return nil, err
		}
		r.AuthStream = st.id
		go func() {
			for {
				var req transfer.AuthRequest
				if st.receiveMessage(&req) != nil || st.sendMessage(answer) != nil {
					return
				}
			}
		}()
	}
	return &transfer.OCIRegistry{Reference: ref, Resolver: r}, nil
}

// credentials are those of --user and --refresh, nil when there are none. A
// password that is left out is asked for.
func credentials(cmd *cli.Command) (*transfer.AuthResponse, error) {
	if token := cmd.String("refresh"); token != "" {
		return &transfer.AuthResponse{AuthType: transfer.AuthType_REFRESH, Secret: token}, nil
	}
	user := cmd.String("user")
	if user == "" {
		return nil, nil
	}
	name, password, ok := strings.Cut(user, ":")
	if !ok {
		if !term.IsTerminal(int(os.Stdin.Fd())) {
			return nil, invalid("--user %s has no password, and stdin is not a terminal to ask for it; write --user name:password", name)
		}
		fmt.Fprint(os.Stderr, "Password: ")
		b, err := term.ReadPassword(int(os.Stdin.Fd()))
		fmt.Fprintln(os.Stderr)
		if err != nil {
			return nil, fmt.Errorf("reading the password: %w", err)
		}
		password = string(b)
	}
	return &transfer.AuthResponse{AuthType: transfer.AuthType_CREDENTIALS, Username: name, Secret: password}, nil
}

// platformArgs reads --platform flags.
func platformArgs(values []string) ([]ispec.Platform, error) {
	var out []ispec.Platform
	for _, v := range values {
		p, err := platforms.Parse(v)
		if err != nil {
			return nil, invalid("--platform %s: %v", v, err)
		}
		out = append(out, p)
	}
	return out, nil
}

func platformsToProto(ps []ispec.Platform) []*types.Platform {
	out := make([]*types.Platform, len(ps))
	for i, p := range ps {
		out[i] = wire.PlatformToProto(p)
	}
	return out
}

func pullFlags() []cli.Flag {
	return append(registryFlags(), snapshotterFlag(), labelFlag(),
		&cli.StringSliceFlag{Name: "platform", Usage: "Pull content from a specific platform"},
		&cli.BoolFlag{Name: "all-platforms", Usage: "Pull content and metadata from all platforms"},
		&cli.BoolFlag{Name: "all-metadata", Usage: "(Deprecated: use skip-metadata) Pull metadata for all platforms", Hidden: true},
		&cli.BoolFlag{Name: "skip-metadata", Usage: "Skips metadata for unused platforms (Image may be unable to be pushed without metadata)"},
		&cli.BoolFlag{Name: "print-chainid", Usage: "Print the resulting image's chain ID"},
		&cli.IntFlag{Name: "max-concurrent-downloads", Usage: "Set the max concurrent downloads for each pull"},
		&cli.BoolFlag{Name: "local", Usage: "Fetch content from local client rather than using transfer service"},
		&cli.BoolFlag{Name: "sync-fs", Usage: "Synchronize the underlying filesystem containing files when unpack images, false by default"},
	)
}

// pullPlatforms are those of the flags, this host's when nothing is said, none
// for all.
func pullPlatforms(cmd *cli.Command) ([]ispec.Platform, error) {
	ps, err := platformArgs(cmd.StringSlice("platform"))
	switch {
	case err != nil:
		return nil, err
	case !cmd.Bool("all-platforms") && len(ps) == 0:
		return []ispec.Platform{platforms.DefaultSpec()}, nil
	case cmd.Bool("all-platforms") && len(ps) > 0:
		return nil, invalid("--platform and --all-platforms cannot be used together")
	}
	return ps, nil
}

func pullAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needsLocal(cmd, "max-concurrent-downloads", "skip-verify", "tlscacert", "tlscert", "tlskey"); err != nil {
		return err
	}
	ref := cmd.Args().First()
	ps, err := pullPlatforms(cmd)
	if err != nil {
		return err
	}
	if cmd.Bool("local") {
		err = s.pullLocally(ctx, cmd, ps, true)
	} else {
		err = s.pull(ctx, cmd, ref, ps)
	}
	if err != nil || !cmd.Bool("print-chainid") {
		return err
	}
	return s.printChains(ctx, ref, ps)
}

// pull has the daemon fetch and unpack an image.
func (s *session) pull(ctx context.Context, cmd *cli.Command, ref string, ps []ispec.Platform) error {
	source, err := s.registry(ctx, cmd, ref)
	if err != nil {
		return err
	}
	store := &transfer.ImageStore{
		Name: ref, Labels: labelArgs(cmd.StringSlice("label")),
		Platforms: platformsToProto(ps), AllMetadata: !cmd.Bool("skip-metadata"),
	}
	for _, p := range ps {
		store.Unpacks = append(store.Unpacks, &transfer.UnpackConfiguration{Platform: wire.PlatformToProto(p), Snapshotter: cmd.String("snapshotter")})
	}
	return s.transfer(ctx, source, store, os.Stdout)
}

func pushFlags() []cli.Flag {
	return append(registryFlags(),
		&cli.StringFlag{Name: "manifest", Usage: "Digest of manifest"},
		&cli.StringFlag{Name: "manifest-type", Usage: "Media type of manifest digest", Value: ispec.MediaTypeImageManifest},
		&cli.StringSliceFlag{Name: "platform", Usage: "Push content from a specific platform"},
		&cli.IntFlag{Name: "max-concurrent-uploaded-layers", Usage: "Set the max concurrent uploaded layers for each push"},
		&cli.BoolFlag{Name: "local", Usage: "Push content from local client rather than using transfer service"},
		&cli.BoolFlag{Name: "allow-non-distributable-blobs", Usage: "Allow pushing blobs that are marked as non-distributable"},
	)
}

func pushAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needsLocal(cmd, "manifest", "manifest-type", "max-concurrent-uploaded-layers", "allow-non-distributable-blobs",
		"skip-verify", "tlscacert", "tlscert", "tlskey"); err != nil {
		return err
	}
	ref, local := cmd.Args().First(), cmd.Args().Get(1)
	if local == "" {
		local = ref
	}
	ps, err := platformArgs(cmd.StringSlice("platform"))
	if err != nil {
		return err
	}
	if cmd.Bool("local") {
		return s.pushLocally(ctx, cmd, ref, local, ps)
	}
	destination, err := s.registry(ctx, cmd, ref)
	if err != nil {
		return err
	}
	return s.transfer(ctx, &transfer.ImageStore{Name: local, Platforms: platformsToProto(ps)}, destination, os.Stdout)
}

func importFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "base-name", Usage: "Base image name for added images, when provided only images with this name prefix are imported"},
		&cli.BoolFlag{Name: "digests", Usage: "Whether to create digest images (default: false)"},
		&cli.BoolFlag{Name: "skip-digest-for-named", Usage: "Skip applying --digests option to images named in the importing tar (use it in conjunction with --digests)"},
		&cli.StringFlag{Name: "index-name", Usage: "Image name to keep index as, by default index is discarded"},
		&cli.BoolFlag{Name: "all-platforms", Usage: "Imports content for all platforms, false by default"},
		&cli.StringFlag{Name: "platform", Usage: "Imports content for specific platform"},
		&cli.BoolFlag{Name: "no-unpack", Usage: "Skip unpacking the images, cannot be used with --discard-unpacked-layers, false by default"},
		&cli.BoolFlag{Name: "local", Usage: "Run import locally rather than through transfer API"},
		&cli.BoolFlag{Name: "compress-blobs", Usage: "Compress uncompressed blobs when creating manifest (Docker format only)"},
		&cli.BoolFlag{Name: "discard-unpacked-layers", Usage: "Allow the garbage collector to clean layers up from the content store after unpacking, cannot be used with --no-unpack, false by default"},
		&cli.BoolFlag{Name: "sync-fs", Usage: "Synchronize the underlying filesystem containing files when unpack images, false by default"},
		snapshotterFlag(), labelFlag(),
	}
}

func importAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needsLocal(cmd, "discard-unpacked-layers"); err != nil {
		return err
	}
	if err := needArgs(cmd, "the archive (a file, or - for stdin)"); err != nil {
		return err
	}
	unpackFor := platforms.DefaultSpec()
	if p := cmd.String("platform"); p != "" {
		ps, err := platformArgs([]string{p})
		if err != nil {
			return err
		}
		unpackFor = ps[0]
	}
	in := os.Stdin
	if path := cmd.Args().First(); path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	if cmd.Bool("local") {
		return s.importLocally(ctx, cmd, in, unpackFor)
	}
	prefix := &transfer.ImageReference{Name: cmd.String("base-name"), IsPrefix: true}
	if prefix.Name == "" {
		prefix.Name, prefix.AllowOverwrite = "import-"+time.Now().Format("2006-01-02"), true
	}
	if cmd.Bool("digests") {
		prefix.AddDigest, prefix.SkipNamedDigest = true, !cmd.Bool("skip-digest-for-named")
	}
	store := &transfer.ImageStore{
		Name: cmd.String("index-name"), Labels: labelArgs(cmd.StringSlice("label")),
		ExtraReferences: []*transfer.ImageReference{prefix},
	}
	if !cmd.Bool("all-platforms") {
		store.Platforms = platformsToProto([]ispec.Platform{unpackFor})
	}
	if !cmd.Bool("no-unpack") {
		store.Unpacks = []*transfer.UnpackConfiguration{{Platform: wire.PlatformToProto(unpackFor), Snapshotter: cmd.String("snapshotter")}}
	}
	st, err := s.openStream(ctx, "import")
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { sent <- st.sendBytes(in) }()
	if err := s.transfer(ctx, &transfer.ImageImportStream{Stream: st.id, ForceCompress: cmd.Bool("compress-blobs")}, store, os.Stdout); err != nil {
		select {
		case failed := <-sent:
			if failed != nil {
				return fmt.Errorf("%w (reading the archive: %w)", err, failed)
			}
		default:
		}
		return err
	}
	return nil
}

func exportFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "skip-manifest-json", Usage: "Do not add Docker compatible manifest.json to archive"},
		&cli.BoolFlag{Name: "skip-non-distributable", Usage: "Do not add non-distributable blobs such as Windows layers to archive"},
		&cli.StringSliceFlag{Name: "platform", Usage: "Pull content from a specific platform"},
		&cli.BoolFlag{Name: "all-platforms", Usage: "Exports content from all platforms"},
		&cli.BoolFlag{Name: "local", Usage: "Run export locally rather than through transfer API"},
	}
}

func exportAction(ctx context.Context, cmd *cli.Command, s *session) (err error) {
	if err := needsLocal(cmd); err != nil {
		return err
	}
	if err := needArgs(cmd, "the archive (a file, or - for stdout)", "an image"); err != nil {
		return err
	}
	ps, err := platformArgs(cmd.StringSlice("platform"))
	if err != nil {
		return err
	}
	path, shown := cmd.Args().First(), os.Stdout
	out := os.Stdout
	if path == "-" {
		shown = os.Stderr // stdout carries the archive
	} else {
		// Under a name of its own until it is whole.
		if out, err = os.Create(path + ".partial"); err != nil {
			return err
		}
		defer func() {
			if e := out.Close(); err == nil {
				err = e
			}
			if err == nil {
				err = os.Rename(path+".partial", path)
			} else {
				os.Remove(path + ".partial")
			}
		}()
	}
	if cmd.Bool("local") {
		return s.exportLocally(ctx, cmd, out, shown, ps)
	}
	st, err := s.openStream(ctx, "export")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	whole, watched, watch := archiveEnd()
	written := make(chan error, 1)
	go func() {
		err := st.receiveBytes(io.MultiWriter(out, watch))
		watch.Close()
		if err != nil { // the daemon would wait for us for ever
			cancel(fmt.Errorf("writing the archive: %w", err))
		}
		written <- err
	}()
	store := &transfer.ImageStore{}
	for _, ref := range cmd.Args().Tail() {
		store.ExtraReferences = append(store.ExtraReferences, &transfer.ImageReference{Name: ref})
	}
	if err := s.transfer(ctx, store, &transfer.ImageExportStream{
		Stream: st.id, Platforms: platformsToProto(ps), AllPlatforms: cmd.Bool("all-platforms"),
		SkipCompatibilityManifest: cmd.Bool("skip-manifest-json"), SkipNonDistributable: cmd.Bool("skip-non-distributable"),
	}, shown); err != nil {
		return interrupted(ctx, err)
	}
	select {
	case err = <-written:
	case <-whole:
		return nil
	case <-time.After(cleanupTime):
		return fmt.Errorf("the daemon has finished the export, but the end of the archive did not come within %s", cleanupTime)
	}
	if err == nil {
		<-watched // the last bytes are written before they are looked at
		select {
		case <-whole:
		default:
			return fmt.Errorf("the archive ends in the middle")
		}
	}
	return err
}

// archiveEnd watches a tar archive that is written to w: whole is closed when its
// end mark has passed, watched when w is closed and all of it has been looked at.
//
// Compat: containerd's daemon does not end the stream of an export; the end of
// the archive is the only sign that all of it is here.
func archiveEnd() (whole, watched <-chan struct{}, w io.WriteCloser) {
	r, pipe := io.Pipe()
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		archive := tar.NewReader(r)
		for {
			_, err := archive.Next()
			if err == io.EOF {
				close(end)
			}
			if err != nil {
				break
			}
		}
		io.Copy(io.Discard, r)
	}()
	return end, done, pipe
}
