package records

import (
	"testing"
	"time"
	"unicode/utf8"

	"berth/internal/object"

	api "github.com/containerd/containerd/api/services/containers/v1"
	"google.golang.org/protobuf/proto"
)

// stored is how a record holds a container.
func stored(t testing.TB, c object.Container) *object.StoredContainer {
	t.Helper()
	encode := func(a object.Any) []byte {
		b, err := a.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	s := &object.StoredContainer{
		ID: []byte(c.ID), Image: []byte(c.Image), Snapshotter: []byte(c.Snapshotter), SnapshotKey: []byte(c.SnapshotKey),
		SandboxID: []byte(c.SandboxID), RuntimeName: []byte(c.Runtime.Name), CreatedAt: c.CreatedAt, UpdatedAt: c.UpdatedAt,
	}
	if c.Spec != nil {
		s.Spec = encode(*c.Spec)
	}
	if c.Runtime.Options != nil {
		s.RuntimeOptions = encode(*c.Runtime.Options)
	}
	for k, v := range c.Labels {
		s.Labels = append(s.Labels, object.StoredPair{Key: []byte(k), Value: []byte(v)})
	}
	for k, v := range c.Extensions {
		s.Extensions = append(s.Extensions, object.StoredPair{Key: []byte(k), Value: encode(v)})
	}
	return s
}

// A list encodes stored containers as the messages would be.
func FuzzAppendContainer(f *testing.F) {
	f.Add("id", "image", "snapshotter", int64(1700000000), int64(17), []byte("spec"), true)
	f.Add("", "", "", int64(-62135596800), int64(0), []byte(nil), false)
	f.Fuzz(func(t *testing.T, a, b, c string, seconds, nanos int64, value []byte, some bool) {
		if !utf8.ValidString(a + "|" + b + "|" + c) {
			t.Skip("no text of a message")
		}
		at := time.Unix(seconds%(1<<40), nanos%1e9).UTC()
		ctr := object.Container{ID: a, Image: b, Snapshotter: c, SnapshotKey: a, SandboxID: b, CreatedAt: at, UpdatedAt: time.Unix(0, 0)}
		if some {
			body := object.Any{TypeURL: b, Value: value}
			ctr.Labels = map[string]string{a: b, "": c, "k": ""}
			ctr.Runtime = object.Runtime{Name: c, Options: &body}
			ctr.Spec, ctr.Extensions = &body, map[string]object.Any{a: body, "x": {}}
		}
		// Two, since the place of one depends on the length of the one before.
		var encoded []byte
		for range 2 {
			encoded = AppendContainer(encoded, 1, stored(t, ctr))
		}
		want := &api.ListContainersResponse{Containers: []*api.Container{ContainerToProto(ctr), ContainerToProto(ctr)}}
		got := &api.ListContainersResponse{}
		if err := proto.Unmarshal(encoded, got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, want) {
			t.Errorf("got  %v\nwant %v", got, want)
		}
	})
}
