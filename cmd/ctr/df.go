package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"berth/cmd/ctr/output"
	"berth/internal/image"
	"berth/internal/wire"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types/task"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

func dfCommand() *cli.Command {
	return &cli.Command{
		Name: "df", Usage: "Show what uses the disk", ArgsUsage: "[flags]",
		Description: "What blobs, unpacked layers, containers and unfinished downloads take, and what could be had back: by removing images that no container " +
			"uses, containers that do not run, and downloads that nobody goes on with. With --verbose each image and container: SIZE is all that belongs to it, " +
			"SHARED the part that other images need, too, UNIQUE what its removal frees.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "List images, containers and downloads one by one"},
			allNamespacesFlag(), formatFlag(),
		},
		Action: withSession(dfAction),
	}
}

// diskView is the whole of what df tells.
type diskView struct {
	Summary    []diskRow
	Images     []diskImage
	Containers []diskContainer
	Ingests    []diskIngest
}

// diskRow sums up one kind of thing. Active ones are in use.
type diskRow struct {
	Type        string
	Total       int
	Active      int
	Size        int64
	Reclaimable int64
}

type diskImage struct {
	Namespace  string
	Name       string
	Blobs      int64 // bytes of its blobs
	Snapshots  int64 // and of its unpacked layers
	Size       int64 // both
	Shared     int64 // of Size, what other images need, too
	Unique     int64 // of Size, what its removal frees
	Containers int   // that were made from it
}

type diskContainer struct {
	Namespace   string
	ID          string
	Image       string
	Snapshotter string
	SnapshotKey string
	Status      string // of its task, empty without one
	Size        int64  // what it has written
}

type diskIngest struct {
	Namespace string
	Ref       string
	Size      int64
	Total     int64 `json:",omitempty"` // 0 when it is not known
	UpdatedAt time.Time
}

// diskItem is a thing on the disk with those that need it.
type diskItem struct {
	size   int64
	parent diskKey // of a snapshot
	images map[int]bool
	used   bool // by a container, itself or one above it
}

// diskKey names a blob by its digest alone: namespaces share them.
type diskKey struct{ namespace, snapshotter, name string }

// disk is what is known of all namespaces that are looked at.
type disk struct {
	view  diskView
	items map[diskKey]*diskItem
}

// abandonedAfter is when nobody goes on with a download any more.
const abandonedAfter = time.Hour

func dfAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := noArgs(cmd); err != nil {
		return err
	}
	d := &disk{items: map[diskKey]*diskItem{}}
	namespaces := []string{s.namespace}
	if cmd.Bool("all-namespaces") {
		namespaces = namespaceNames(ctx, s)
	}
	for _, ns := range namespaces {
		if err := d.look(withNamespace(ctx, ns), &session{ClientConn: s.ClientConn, namespace: ns}); err != nil {
			return err
		}
	}
	d.sum(time.Now())
	if format := cmd.String("format"); format != "" && format != "table" {
		return output.One(format, d.view)
	}
	if err := output.List("", d.view.Summary, output.Narrow, "TYPE\tTOTAL\tACTIVE\tSIZE\tRECLAIMABLE\t", func(r diskRow) string {
		share := ""
		if r.Size > 0 {
			share = fmt.Sprintf(" (%d%%)", 100*r.Reclaimable/r.Size)
		}
		return fmt.Sprintf("%s\t%d\t%d\t%s\t%s%s\t", r.Type, r.Total, r.Active, output.Size(r.Size), output.Size(r.Reclaimable), share)
	}); err != nil || !cmd.Bool("verbose") {
		return err
	}
	return d.list()
}

// list prints everything one by one.
func (d *disk) list() error {
	output.Line("")
	if err := output.List("", d.view.Images, output.Narrow, "NAMESPACE\tIMAGE\tBLOBS\tSNAPSHOTS\tSIZE\tSHARED\tUNIQUE\tCONTAINERS\t", func(i diskImage) string {
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t", i.Namespace, i.Name, output.Size(i.Blobs), output.Size(i.Snapshots), output.Size(i.Size), output.Size(i.Shared), output.Size(i.Unique), i.Containers)
	}); err != nil {
		return err
	}
	output.Line("")
	if err := output.List("", d.view.Containers, output.Narrow, "NAMESPACE\tCONTAINER\tIMAGE\tSTATUS\tSIZE\t", func(c diskContainer) string {
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t", c.Namespace, c.ID, output.Dash(c.Image), output.Dash(c.Status), output.Size(c.Size))
	}); err != nil || len(d.view.Ingests) == 0 {
		return err
	}
	output.Line("")
	return output.List("", d.view.Ingests, output.Narrow, "NAMESPACE\tDOWNLOAD\tSIZE\tOF\tUPDATED\t", func(i diskIngest) string {
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t", i.Namespace, i.Ref, output.Size(i.Size), limit(uint64(i.Total)), i.UpdatedAt.Local().Format(time.DateTime))
	})
}

// look gathers what a namespace has.
func (d *disk) look(ctx context.Context, s *session) error {
	tops := map[string][]diskKey{} // by the digest of an image's config
	if err := s.walkBlobs(ctx, nil, func(b blobView) error {
		key := diskKey{name: b.Digest}
		if d.items[key] == nil {
			d.items[key] = &diskItem{size: b.Size, images: map[int]bool{}}
		}
		for label, name := range b.Labels {
			if sn, ok := strings.CutPrefix(label, image.SnapshotLabel("")); ok {
				tops[b.Digest] = append(tops[b.Digest], diskKey{s.namespace, sn, name})
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if err := d.lookAtSnapshots(ctx, s); err != nil {
		return err
	}
	if err := d.lookAtImages(ctx, s, tops); err != nil {
		return err
	}
	if err := d.lookAtContainers(ctx, s); err != nil {
		return err
	}
	return d.lookAtIngests(ctx, s)
}

func (d *disk) lookAtSnapshots(ctx context.Context, s *session) error {
	for _, name := range snapshotterNames(ctx, s) {
		sn := newSnapshotter(s, name)
		list, err := sn.list(ctx)
		if err != nil {
			return fmt.Errorf("snapshots of %s: %w", name, err)
		}
		sizes, errs := make([]int64, len(list)), make([]error, len(list))
		forAll(len(list), func(i int) {
			var resp *snapshotsapi.UsageResponse
			resp, errs[i] = sn.Usage(ctx, &snapshotsapi.UsageRequest{Snapshotter: name, Key: list[i].Name})
			sizes[i] = resp.GetSize()
		})
		for i, v := range list {
			if ignoreNotFound(errs[i]) != nil {
				return fmt.Errorf("size of snapshot %s of %s: %w", v.Name, name, errs[i])
			}
			item := &diskItem{size: sizes[i], images: map[int]bool{}}
			if v.Parent != "" {
				item.parent = diskKey{s.namespace, name, v.Parent}
			}
			d.items[diskKey{s.namespace, name, v.Name}] = item
		}
	}
	return nil
}

// lookAtImages marks what belongs to each image.
func (d *disk) lookAtImages(ctx context.Context, s *session, tops map[string][]diskKey) error {
	list, err := listImages(ctx, s, nil)
	if err != nil {
		return err
	}
	for _, img := range list {
		n := len(d.view.Images)
		d.view.Images = append(d.view.Images, diskImage{Namespace: s.namespace, Name: img.Name})
		d.mark(ctx, s, wire.DescriptorFromProto(img.Target), n, tops)
	}
	return nil
}

// mark marks a blob and what is below it. What is missing or cannot be read has
// no size: fsck is for that.
func (d *disk) mark(ctx context.Context, s *session, desc ispec.Descriptor, n int, tops map[string][]diskKey) {
	item := d.items[diskKey{name: desc.Digest.String()}]
	if item == nil || item.images[n] {
		return
	}
	item.images[n] = true
	for _, key := range tops[desc.Digest.String()] {
		for ; d.items[key] != nil; key = d.items[key].parent {
			d.items[key].images[n] = true
		}
	}
	if !image.IsManifest(desc.MediaType) && !image.IsIndex(desc.MediaType) {
		return
	}
	children, err := image.Children(ctx, s.readBlob, desc)
	if err != nil {
		return
	}
	for _, child := range children {
		d.mark(ctx, s, child, n, tops)
	}
}

func (d *disk) lookAtContainers(ctx context.Context, s *session) error {
	list, err := listContainers(ctx, s)
	if err != nil {
		return err
	}
	tasks, err := listTasks(ctx, s)
	if err != nil {
		return err
	}
	status := map[string]string{}
	for _, t := range tasks {
		status[t.ID] = t.Status.String()
	}
	for _, c := range list {
		v := diskContainer{Namespace: s.namespace, ID: c.ID, Image: c.Image, Snapshotter: c.Snapshotter, SnapshotKey: c.SnapshotKey, Status: status[c.ID]}
		key := diskKey{s.namespace, c.Snapshotter, c.SnapshotKey}
		if item := d.items[key]; item != nil && c.SnapshotKey != "" {
			v.Size = item.size
			for ; d.items[key] != nil; key = d.items[key].parent {
				d.items[key].used = true
			}
		}
		d.view.Containers = append(d.view.Containers, v)
		for i := range d.view.Images {
			if img := &d.view.Images[i]; img.Namespace == s.namespace && img.Name == c.Image {
				img.Containers++
			}
		}
	}
	return nil
}

func (d *disk) lookAtIngests(ctx context.Context, s *session) error {
	resp, err := contentapi.NewContentClient(s).ListStatuses(ctx, &contentapi.ListStatusesRequest{})
	if err != nil {
		return err
	}
	for _, i := range resp.Statuses {
		d.view.Ingests = append(d.view.Ingests, diskIngest{s.namespace, i.Ref, i.Offset, i.Total, i.UpdatedAt.AsTime()})
	}
	return nil
}

// sum fills what follows from the marks.
func (d *disk) sum(now time.Time) {
	blobs, layers := diskRow{Type: "Blobs"}, diskRow{Type: "Layers"}
	own := map[diskKey]bool{}
	containers := diskRow{Type: "Containers", Total: len(d.view.Containers)}
	for _, c := range d.view.Containers {
		own[diskKey{c.Namespace, c.Snapshotter, c.SnapshotKey}] = true
		containers.Size += c.Size
		if c.Status != "" && c.Status != task.Status_STOPPED.String() {
			containers.Active++
		} else {
			containers.Reclaimable += c.Size
		}
	}
	for key, item := range d.items {
		isBlob := key.namespace == ""
		if !isBlob && own[key] {
			continue // a container's
		}
		row, active := &layers, item.used
		if isBlob {
			row, active = &blobs, false
		}
		for n := range item.images {
			img := &d.view.Images[n]
			active = active || img.Containers > 0
			img.Size += item.size
			if isBlob {
				img.Blobs += item.size
			} else {
				img.Snapshots += item.size
			}
			if len(item.images) > 1 {
				img.Shared += item.size
			} else if !item.used {
				img.Unique += item.size
			}
		}
		row.add(item.size, active)
	}
	ingests := diskRow{Type: "Downloads"}
	for _, i := range d.view.Ingests {
		ingests.add(i.Size, now.Sub(i.UpdatedAt) < abandonedAfter)
	}
	d.view.Summary = []diskRow{blobs, layers, containers, ingests}
	slices.SortStableFunc(d.view.Images, func(a, b diskImage) int { return cmp.Compare(b.Size, a.Size) })
	slices.SortStableFunc(d.view.Containers, func(a, b diskContainer) int { return cmp.Compare(b.Size, a.Size) })
}

func (r *diskRow) add(size int64, active bool) {
	r.Total++
	r.Size += size
	if active {
		r.Active++
	} else {
		r.Reclaimable += size
	}
}
