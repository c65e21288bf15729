package records

import (
	"reflect"
	"testing"
	"time"

	"berth/internal/object"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzRecords turns records into messages and back.
func FuzzRecords(f *testing.F) {
	f.Add("id", "io.containerd.runc.v2", "sha256:e3", int64(1700000000), []byte("spec"))
	f.Add("", "", "", int64(0), []byte(nil))
	f.Fuzz(func(t *testing.T, a, b, c string, n int64, value []byte) {
		at := time.Unix(n%(1<<33), 5).UTC()
		labels := map[string]string{a: b, c: ""}
		body := object.Any{TypeURL: b, Value: value}
		same := func(what string, got, want any) {
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %#v became %#v", what, want, got)
			}
		}
		ns := object.Namespace{Name: a, Labels: labels}
		same("namespace", NamespaceFromProto(NamespaceToProto(ns)), ns)

		container := object.Container{
			ID: a, Labels: labels, Image: b, Runtime: object.Runtime{Name: b, Options: &body}, Spec: &body,
			Snapshotter: c, SnapshotKey: a, SandboxID: b, Extensions: map[string]object.Any{a: body},
		}
		same("container", ContainerFromProto(ContainerToProto(container)), container)

		image := object.Image{
			Name: a, Labels: labels, CreatedAt: at, UpdatedAt: at,
			Target: ispec.Descriptor{MediaType: b, Digest: digest.Digest(c), Size: n, Annotations: labels},
		}
		same("image", ImageFromProto(ImageToProto(image)), image)

		lease := object.Lease{ID: a, Labels: labels, CreatedAt: at}
		same("lease", LeaseFromProto(LeaseToProto(lease)), lease)
		resource := object.Resource{Type: a, ID: b}
		same("resource", ResourceFromProto(ResourceToProto(resource)), resource)

		sandbox := object.Sandbox{
			ID: a, Labels: labels, Runtime: object.Runtime{Name: b, Options: &body}, Spec: &body,
			Sandboxer: c, Extensions: map[string]object.Any{a: body}, CreatedAt: at, UpdatedAt: at,
		}
		same("sandbox", SandboxFromProto(SandboxToProto(sandbox)), sandbox)

		for _, kind := range []object.SnapshotKind{object.SnapshotUnknown, object.SnapshotView, object.SnapshotActive, object.SnapshotCommitted} {
			info := object.SnapshotInfo{Kind: kind, Name: a, Parent: b, Labels: labels, Created: at, Updated: at}
			same("snapshot", SnapshotFromProto(SnapshotToProto(info)), info)
		}
	})
}

// Requests may lack every part.
func TestNilMessages(t *testing.T) {
	for what, got := range map[string]any{
		"namespace": NamespaceFromProto(nil),
		"container": ContainerFromProto(nil),
		"image":     ImageFromProto(nil),
		"lease":     LeaseFromProto(nil),
		"resource":  ResourceFromProto(nil),
		"sandbox":   SandboxFromProto(nil),
		"snapshot":  SnapshotFromProto(nil),
	} {
		if !reflect.ValueOf(got).IsZero() {
			t.Errorf("%s of nil: %#v", what, got)
		}
	}
}
