package events

import (
	"berth/internal/object"

	api "github.com/containerd/containerd/api/events"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// NamespaceCreate and the two that follow are published in the namespace that
// they are about.
func NamespaceCreate(ns object.Namespace) Event {
	return Event{"/namespaces/create", &api.NamespaceCreate{Name: ns.Name, Labels: ns.Labels}}
}

func NamespaceUpdate(ns object.Namespace) Event {
	return Event{"/namespaces/update", &api.NamespaceUpdate{Name: ns.Name, Labels: ns.Labels}}
}

func NamespaceDelete(name string) Event {
	return Event{"/namespaces/delete", &api.NamespaceDelete{Name: name}}
}

func ContainerCreate(c object.Container) Event {
	runtime := &api.ContainerCreate_Runtime{Name: c.Runtime.Name}
	if o := c.Runtime.Options; o != nil {
		runtime.Options = &anypb.Any{TypeUrl: o.TypeURL, Value: o.Value}
	}
	return Event{"/containers/create", &api.ContainerCreate{ID: c.ID, Image: c.Image, Runtime: runtime}}
}

func ContainerUpdate(c object.Container) Event {
	return Event{"/containers/update", &api.ContainerUpdate{
		ID: c.ID, Image: c.Image, Labels: c.Labels, SnapshotKey: c.SnapshotKey,
	}}
}

func ContainerDelete(id string) Event {
	return Event{"/containers/delete", &api.ContainerDelete{ID: id}}
}

func ImageCreate(img object.Image) Event {
	return Event{"/images/create", &api.ImageCreate{Name: img.Name, Labels: img.Labels}}
}

func ImageUpdate(img object.Image) Event {
	return Event{"/images/update", &api.ImageUpdate{Name: img.Name, Labels: img.Labels}}
}

func ImageDelete(name string) Event {
	return Event{"/images/delete", &api.ImageDelete{Name: name}}
}

// ContentCreate tells of a blob that became visible in a namespace. The media
// type is empty where the writer did not say it.
func ContentCreate(d digest.Digest, size int64, mediaType string) Event {
	return Event{"/content/create", &api.ContentCreate{Digest: d.String(), Size: size, MediaType: mediaType}}
}

func ContentDelete(d digest.Digest) Event {
	return Event{"/content/delete", &api.ContentDelete{Digest: d.String()}}
}

// SnapshotPrepare tells of an active snapshot; there is no event for a view.
func SnapshotPrepare(snapshotter, key, parent string) Event {
	return Event{"/snapshot/prepare", &api.SnapshotPrepare{Key: key, Parent: parent, Snapshotter: snapshotter}}
}

func SnapshotCommit(snapshotter, key, name string) Event {
	return Event{"/snapshot/commit", &api.SnapshotCommit{Key: key, Name: name, Snapshotter: snapshotter}}
}

func SnapshotRemove(snapshotter, key string) Event {
	return Event{"/snapshot/remove", &api.SnapshotRemove{Key: key, Snapshotter: snapshotter}}
}

func SandboxCreate(id string) Event {
	return Event{"/sandboxes/create", &api.SandboxCreate{SandboxID: id}}
}

func SandboxStart(id string) Event {
	return Event{"/sandboxes/start", &api.SandboxStart{SandboxID: id}}
}

func SandboxExit(id string, exit object.Exit) Event {
	return Event{"/sandboxes/exit", &api.SandboxExit{
		SandboxID: id, ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.At),
	}}
}
