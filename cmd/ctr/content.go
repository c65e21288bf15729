package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"berth/cmd/ctr/output"
	"berth/internal/registry"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/docker/go-units"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

func contentCommand() *cli.Command {
	return &cli.Command{
		Name:  "content",
		Usage: "Manage content",
		Commands: []*cli.Command{
			{
				Name: "active", Usage: "Display active transfers", ArgsUsage: "[flags] [<regexp>]", Description: "display the ongoing transfers",
				Flags: []cli.Flag{
					&cli.DurationFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "Total timeout for fetch", Sources: cli.EnvVars("CONTAINERD_FETCH_TIMEOUT")},
					&cli.StringFlag{Name: "root", Usage: "Path to content store root", Value: "/tmp/content"},
					formatFlag(),
				},
				Action: withSession(activeIngestsAction),
			},
			{
				Name: "delete", Aliases: []string{"del", "remove", "rm"}, Usage: "Permanently delete one or more blobs", ArgsUsage: "[<digest>, ...]",
				Description: "Deletes blobs; those that were there are printed.", Action: withSession(deleteBlobsAction),
			},
			{
				Name: "edit", Usage: "Edit a blob and return a new digest", ArgsUsage: "[flags] <digest>", Description: "edit a blob and return a new digest",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "validate", Usage: "Validate the result against a format (json, mediatype, etc.)"},
					&cli.StringFlag{Name: "editor", Usage: "Select editor (vim, emacs, etc.)", Sources: cli.EnvVars("EDITOR")},
				},
				Action: withSession(editBlobAction),
			},
			{
				Name: "fetch", Usage: "Fetch all content for an image into containerd", ArgsUsage: "[flags] <remote> <object>",
				Description: "Fetches an image without unpacking it.\n\nExample:\n  ctr content fetch docker.io/library/alpine:latest",
				Flags: append(registryFlags(), labelFlag(),
					&cli.StringSliceFlag{Name: "platform", Usage: "Pull content from a specific platform"},
					&cli.BoolFlag{Name: "all-platforms", Usage: "Pull content from all platforms"},
					&cli.BoolFlag{Name: "all-metadata", Usage: "(Deprecated: use skip-metadata) Pull metadata for all platforms", Hidden: true},
					&cli.BoolFlag{Name: "skip-metadata", Usage: "Skips metadata for unused platforms (Image may be unable to be pushed without metadata)"},
					&cli.BoolFlag{Name: "metadata-only", Usage: "Pull all metadata including manifests and configs"},
				),
				Action: withSession(func(ctx context.Context, cmd *cli.Command, s *session) error {
					ps, err := pullPlatforms(cmd)
					if err != nil {
						return err
					}
					return s.pullLocally(ctx, cmd, ps, false)
				}),
			},
			{
				Name: "fetch-object", Usage: "Retrieve objects from a remote", ArgsUsage: "[flags] <remote> <object> [<hint>, ...]",
				Description: "Prints the manifest or index that a reference stands for; no daemon is needed.", Flags: registryFlags(), Action: fetchObjectAction,
			},
			{
				Name: "fetch-blob", Usage: "Retrieve blobs from a remote", ArgsUsage: "[flags] <remote> [<digest>, ...]",
				Description: "Prints blobs of a repository; no daemon is needed.",
				Flags:       append(registryFlags(), &cli.StringFlag{Name: "media-type", Usage: "Specify target mediatype for request header"}),
				Action:      fetchBlobAction,
			},
			{Name: "get", Usage: "Get the data for an object", ArgsUsage: "[<digest>, ...]", Description: "display the image object", Action: withSession(getBlobAction)},
			{
				Name: "ingest", Usage: "Accept content into the store", ArgsUsage: "[flags] <key>", Description: "ingest objects into the local content store",
				Flags: []cli.Flag{
					&cli.Int64Flag{Name: "expected-size", Usage: "Validate against provided size"},
					&cli.StringFlag{Name: "expected-digest", Usage: "Verify content against expected digest"},
				},
				Action: withSession(ingestAction),
			},
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "List all blobs in the store", ArgsUsage: "[flags]", Description: "list blobs in the content store",
				Flags: []cli.Flag{quietFlag("Print only the blob digest"), formatFlag()}, Action: withSession(listContentAction),
			},
			{
				Name: "push-object", Usage: "Push an object to a remote", ArgsUsage: "[flags] <remote> <object> <type>",
				Description: "Push objects by identifier to a remote.", Flags: registryFlags(), Action: withSession(pushObjectAction),
			},
			{
				Name: "label", Usage: "Add labels to content", ArgsUsage: "<digest> [<label>=<value> ...]", Description: "labels blobs in the content store",
				Action: withSession(labelBlobAction),
			},
			{
				Name: "prune", Usage: "Prunes content from the content store",
				Commands: []*cli.Command{{
					Name: "references", Usage: "Prunes preference labels from the content store (layers only by default)",
					Flags: []cli.Flag{
						&cli.BoolFlag{Name: "async", Usage: "Allow garbage collection to cleanup asynchronously"},
						&cli.BoolFlag{Name: "dry", Usage: "Just show updates without applying (enables debug logging)"},
					},
					Action: withSession(pruneReferencesAction),
				}},
			},
		},
	}
}

func parseDigest(s string) (digest.Digest, error) {
	d, err := digest.Parse(s)
	if err != nil {
		return "", invalid("%q is not a digest such as sha256:0123…: %v", s, err)
	}
	return d, nil
}

func getBlobAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "a digest"); err != nil {
		return err
	}
	d, err := parseDigest(cmd.Args().First())
	if err != nil {
		return err
	}
	return s.streamBlob(ctx, ispec.Descriptor{Digest: d}, func(b []byte) error {
		_, err := os.Stdout.Write(b)
		return err
	})
}

// blobView is a blob as lists show it.
type blobView struct {
	Digest    string
	Size      int64
	Labels    map[string]string
	CreatedAt time.Time
	UpdatedAt time.Time
}

func (s *session) walkBlobs(ctx context.Context, filters []string, fn func(blobView) error) error {
	ctx, cancel := context.WithCancel(ctx) // ends the stream when fn fails
	defer cancel()
	stream, err := contentapi.NewContentClient(s).List(ctx, &contentapi.ListContentRequest{Filters: filters})
	if err != nil {
		return err
	}
	return receive(stream.Recv, func(resp *contentapi.ListContentResponse) error {
		for _, i := range resp.Info {
			if err := fn(blobView{i.Digest, i.Size, i.Labels, i.CreatedAt.AsTime(), i.UpdatedAt.AsTime()}); err != nil {
				return err
			}
		}
		return nil
	})
}

func listContentAction(ctx context.Context, cmd *cli.Command, s *session) error {
	var rows []blobView
	if err := s.walkBlobs(ctx, cmd.Args().Slice(), func(b blobView) error {
		rows = append(rows, b)
		return nil
	}); err != nil {
		return err
	}
	if cmd.Bool("quiet") {
		return output.Names(rows, func(b blobView) string { return b.Digest })
	}
	return output.List(cmd.String("format"), rows, output.Tabbed, "DIGEST\tSIZE\tAGE\tLABELS", func(b blobView) string {
		return fmt.Sprintf("%s\t%s\t%s\t%s", b.Digest, units.HumanSize(float64(b.Size)), units.HumanDuration(time.Since(b.CreatedAt)), output.Dash(output.Labels(b.Labels)))
	})
}

// ingestView is an ingest as active shows it.
type ingestView struct {
	Ref       string
	Offset    int64
	Total     int64
	StartedAt time.Time
	UpdatedAt time.Time
}

func activeIngestsAction(ctx context.Context, cmd *cli.Command, s *session) error {
	var filters []string
	if match := cmd.Args().First(); match != "" {
		filters = []string{"ref~=" + strconv.Quote(match)}
	}
	resp, err := contentapi.NewContentClient(s).ListStatuses(ctx, &contentapi.ListStatusesRequest{Filters: filters})
	if err != nil {
		return err
	}
	rows := make([]ingestView, len(resp.Statuses))
	for i, st := range resp.Statuses {
		rows[i] = ingestView{st.Ref, st.Offset, st.Total, st.StartedAt.AsTime(), st.UpdatedAt.AsTime()}
	}
	return output.List(cmd.String("format"), rows, output.Tabbed, "REF\tSIZE\tAGE\t", func(i ingestView) string {
		return fmt.Sprintf("%s\t%s\t%s\t", i.Ref, units.HumanSize(float64(i.Offset)), units.HumanDuration(time.Since(i.StartedAt)))
	})
}

func deleteBlobsAction(ctx context.Context, cmd *cli.Command, s *session) error {
	return forEach(cmd.Args().Slice(), "could not delete", func(arg string) error {
		d, err := parseDigest(arg)
		if err != nil {
			return err
		}
		_, err = contentapi.NewContentClient(s).Delete(ctx, &contentapi.DeleteContentRequest{Digest: d.String()})
		if err == nil {
			output.Line("%s", d)
		}
		return ignoreNotFound(err)
	})
}

func labelBlobAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "a digest"); err != nil {
		return err
	}
	d, err := parseDigest(cmd.Args().First())
	if err != nil {
		return err
	}
	content := contentapi.NewContentClient(s)
	var labels map[string]string
	if changes := labelArgs(cmd.Args().Tail()); len(changes) > 0 {
		set, paths := labelChanges(changes)
		resp, err := content.Update(ctx, &contentapi.UpdateRequest{
			Info: &contentapi.Info{Digest: d.String(), Labels: set}, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths},
		})
		if err != nil {
			return err
		}
		labels = resp.Info.Labels
	} else {
		resp, err := content.Info(ctx, &contentapi.InfoRequest{Digest: d.String()})
		if err != nil {
			return err
		}
		labels = resp.Info.Labels
	}
	output.Line("%s", output.Labels(labels))
	return nil
}

func ingestAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "a transaction reference"); err != nil {
		return err
	}
	var expected digest.Digest
	if want := cmd.String("expected-digest"); want != "" {
		var err error
		if expected, err = parseDigest(want); err != nil {
			return err
		}
	}
	_, err := s.writeBlob(ctx, cmd.Args().First(), os.Stdin, cmd.Int64("expected-size"), expected)
	return err
}

// writeBlob stores what r gives. Size 0 and an empty digest mean that they are
// not known. A blob that is there already is no error.
func (s *session) writeBlob(ctx context.Context, ref string, r io.Reader, size int64, expected digest.Digest) (_ digest.Digest, err error) {
	content := contentapi.NewContentClient(s)
	streamCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := content.Write(streamCtx)
	if err != nil {
		return "", err
	}
	ours := false
	defer func() {
		if err == nil || !ours {
			return
		}
		cancel() // the ingest is locked as long as the stream is open
		undo, end := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer end()
		_, _ = content.Abort(undo, &contentapi.AbortRequest{Ref: ref})
	}()
	send := func(req *contentapi.WriteContentRequest) (*contentapi.WriteContentResponse, error) {
		req.Ref, req.Total, req.Expected = ref, size, expected.String()
		if err := stream.Send(req); err != nil && err != io.EOF { // io.EOF: the reason is in Recv
			return nil, err
		}
		return stream.Recv()
	}
	resp, err := send(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_STAT})
	if err != nil {
		return "", ignoreExists(err)
	}
	if resp.Offset > 0 {
		return "", fmt.Errorf("the ingest %s is there already and holds %d bytes; use another reference", ref, resp.Offset)
	}
	ours = true
	buf, offset := make([]byte, 1<<20), int64(0)
	for {
		n, readErr := io.ReadFull(r, buf)
		if n > 0 {
			if _, err := send(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Offset: offset, Data: buf[:n]}); err != nil {
				return "", err
			}
			offset += int64(n)
		}
		if errors.Is(readErr, io.EOF) || errors.Is(readErr, io.ErrUnexpectedEOF) {
			break
		}
		if readErr != nil {
			return "", readErr
		}
	}
	resp, err = send(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_COMMIT, Offset: offset})
	if err != nil {
		return "", ignoreExists(err)
	}
	return digest.Digest(resp.Digest), nil
}

func editBlobAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if v := cmd.String("validate"); v != "" && v != "json" {
		return invalid("--validate knows json, not %q", v)
	}
	if err := needArgs(cmd, "a digest"); err != nil {
		return err
	}
	d, err := parseDigest(cmd.Args().First())
	if err != nil {
		return err
	}
	editor := cmd.String("editor")
	if editor == "" {
		return invalid("an editor must be named with --editor or EDITOR")
	}
	f, err := os.CreateTemp(os.Getenv("XDG_RUNTIME_DIR"), "edit-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = s.streamBlob(ctx, ispec.Descriptor{Digest: d}, func(b []byte) error {
		_, err := f.Write(b)
		return err
	})
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	// The editor is a shell command of the user's; the file is an argument to it.
	edit := exec.CommandContext(ctx, "sh", "-c", editor+` "$@"`, "editor", f.Name())
	edit.Stdin, edit.Stdout, edit.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := edit.Run(); err != nil {
		return fmt.Errorf("editor %s: %w", editor, err)
	}
	edited, err := os.Open(f.Name()) // which the editor may have made anew
	if err != nil {
		return err
	}
	defer edited.Close()
	got, err := digest.FromReader(edited)
	if err == nil {
		_, err = edited.Seek(0, io.SeekStart)
	}
	if err != nil {
		return err
	}
	if cmd.String("validate") == "json" {
		if err := validJSON(edited); err != nil {
			return fmt.Errorf("%s was not stored: %w", f.Name(), err)
		}
	}
	if _, err := s.writeBlob(ctx, "edit-"+d.String()+"-"+uuid.NewString(), edited, 0, got); err != nil {
		return err
	}
	output.Line("%s", got)
	return nil
}

// validJSON checks that a file is one JSON value, and goes back to its beginning.
func validJSON(f *os.File) error {
	d := json.NewDecoder(f)
	var v json.RawMessage
	if err := d.Decode(&v); err != nil {
		return invalid("it is not JSON: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return invalid("it is not JSON: something follows the value")
	}
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// pruneReferencesAction takes away the labels that keep the layers of unpacked
// images, so that the collector may have them.
func pruneReferencesAction(ctx context.Context, cmd *cli.Command, s *session) error {
	content := contentapi.NewContentClient(s)
	err := s.walkBlobs(ctx, nil, func(b blobView) error {
		var paths []string
		for key := range b.Labels {
			if isLayerLabel(key) {
				fmt.Fprintf(os.Stderr, "%s: removing label %s\n", b.Digest, key)
				paths = append(paths, "labels."+key)
			}
		}
		if len(paths) == 0 || cmd.Bool("dry") {
			return nil
		}
		_, err := content.Update(ctx, &contentapi.UpdateRequest{Info: &contentapi.Info{Digest: b.Digest}, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}})
		return err
	})
	if err != nil || cmd.Bool("dry") {
		return err
	}
	// The end of a lease is what makes the collector run.
	lease := leaseID()
	if err := createLease(ctx, s, lease); err != nil {
		return err
	}
	return deleteLease(ctx, s, lease, !cmd.Bool("async"))
}

// isLayerLabel tells whether a label refers to a layer: numbered with l., or, as
// once was usual, numbered from 1, with the config at 0.
func isLayerLabel(key string) bool {
	if strings.HasPrefix(key, "containerd.io/gc.ref.content.l.") {
		return true
	}
	n, ok := strings.CutPrefix(key, "containerd.io/gc.ref.content.")
	number, err := strconv.Atoi(n)
	return ok && err == nil && number > 0
}

// openRemote opens a reference at its registry, without a daemon.
func openRemote(cmd *cli.Command, ref string) (*registry.Remote, error) {
	if ref == "" {
		return nil, invalid("an image reference must be provided, such as docker.io/library/alpine:latest")
	}
	opts := registry.Options{
		HostDir: cmd.String("hosts-dir"), SkipVerify: cmd.Bool("skip-verify"),
		CACert: cmd.String("tlscacert"), ClientCert: cmd.String("tlscert"), ClientKey: cmd.String("tlskey"),
		HTTPDump: cmd.Bool("http-dump"), HTTPTrace: cmd.Bool("http-trace"),
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	if cmd.Bool("plain-http") {
		opts.DefaultScheme = "http"
	}
	var err error
	if opts.Credentials, err = credentials(cmd, ref); err != nil {
		return nil, err
	}
	return registry.NewRemote(ref, opts)
}

// withRemote resolves the reference that is the argument and calls fn with what its
// registry has there.
func withRemote(ctx context.Context, cmd *cli.Command, fn func(*registry.Remote, ispec.Descriptor) error) error {
	if err := needArgs(cmd, "an image reference"); err != nil {
		return err
	}
	r, err := openRemote(cmd, cmd.Args().First())
	if err != nil {
		return err
	}
	defer r.Close()
	desc, err := r.Resolve(ctx)
	if err != nil {
		return err
	}
	return fn(r, desc)
}

func fetchObjectAction(ctx context.Context, cmd *cli.Command) error {
	return withRemote(ctx, cmd, func(r *registry.Remote, desc ispec.Descriptor) error { return printRemote(ctx, r, desc) })
}

func fetchBlobAction(ctx context.Context, cmd *cli.Command) error {
	if err := needArgs(cmd, "an image reference", "a digest"); err != nil {
		return err
	}
	// A blob needs no more than the repository; any tag goes.
	repository, _, _ := strings.Cut(cmd.Args().First(), "@")
	for _, arg := range cmd.Args().Tail() {
		d, err := parseDigest(arg)
		if err != nil {
			return err
		}
		r, err := openRemote(cmd, repository+"@"+d.String())
		if err != nil {
			return err
		}
		desc, err := r.Stat(ctx, d)
		if err == nil {
			desc.MediaType = cmd.String("media-type")
			err = printRemote(ctx, r, desc)
		}
		r.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func printRemote(ctx context.Context, r *registry.Remote, desc ispec.Descriptor) error {
	body, err := r.Fetch(ctx, desc, 0)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(os.Stdout, body)
	return err
}

func pushObjectAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "an image reference", "a digest", "a media type"); err != nil {
		return err
	}
	d, err := parseDigest(cmd.Args().Get(1))
	if err != nil {
		return err
	}
	info, err := contentapi.NewContentClient(s).Info(ctx, &contentapi.InfoRequest{Digest: d.String()})
	if err != nil {
		return err
	}
	r, err := openRemote(cmd, cmd.Args().First())
	if err != nil {
		return err
	}
	defer r.Close()
	desc := ispec.Descriptor{MediaType: cmd.Args().Get(2), Digest: d, Size: info.Info.Size}
	if _, err := r.Push(ctx, registry.Upload{Desc: desc, Open: func() (io.ReadCloser, error) {
		body, w := io.Pipe()
		go func() {
			w.CloseWithError(s.streamBlob(ctx, desc, func(b []byte) error {
				_, err := w.Write(b)
				return err
			}))
		}()
		return body, nil
	}}); err != nil {
		return err
	}
	output.Line("Pushed %s %s", desc.Digest, desc.MediaType)
	return nil
}
