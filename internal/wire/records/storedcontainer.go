package records

import (
	"time"

	"berth/internal/object"

	"google.golang.org/protobuf/encoding/protowire"
)

// The fields of containerd.services.containers.v1.Container; and of its map
// entries, its Runtime, and google.protobuf.Timestamp.
const (
	containerID, containerLabels, containerImage, containerRuntime, containerSpec, containerSnapshotter,
	containerSnapshotKey, containerCreatedAt, containerUpdatedAt, containerExtensions, containerSandbox = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11

	entryKey, entryValue             = 1, 2
	runtimeName, runtimeOptions      = 1, 2
	timestampSeconds, timestampNanos = 1, 2
)

// AppendContainer appends the container as field number field of an encoded
// message: what ContainerToProto says, without the detour over objects and
// messages. It is for lists of thousands.
func AppendContainer(b []byte, field protowire.Number, c *object.StoredContainer) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	start := len(b)
	b = append(b, 0, 0, 0, 0, 0) // room for the length, which is known at the end
	body := len(b)
	b = appendText(b, containerID, c.ID)
	for _, l := range c.Labels {
		b = appendEntry(b, containerLabels, l)
	}
	b = appendText(b, containerImage, c.Image)
	b = protowire.AppendTag(b, containerRuntime, protowire.BytesType)
	size := sizeText(runtimeName, c.RuntimeName)
	if c.RuntimeOptions != nil {
		size += protowire.SizeTag(runtimeOptions) + protowire.SizeBytes(len(c.RuntimeOptions))
	}
	b = protowire.AppendVarint(b, uint64(size))
	b = appendText(b, runtimeName, c.RuntimeName)
	b = appendMessage(b, runtimeOptions, c.RuntimeOptions)
	b = appendMessage(b, containerSpec, c.Spec)
	b = appendText(b, containerSnapshotter, c.Snapshotter)
	b = appendText(b, containerSnapshotKey, c.SnapshotKey)
	b = appendTime(b, containerCreatedAt, c.CreatedAt)
	b = appendTime(b, containerUpdatedAt, c.UpdatedAt)
	for _, e := range c.Extensions {
		b = appendEntry(b, containerExtensions, e)
	}
	b = appendText(b, containerSandbox, c.SandboxID)
	// The body moves up to where its length ends.
	n := len(b) - body
	head := protowire.AppendVarint(b[:start], uint64(n))
	copy(b[len(head):], b[body:])
	return b[:len(head)+n]
}

func appendText(b []byte, field protowire.Number, text []byte) []byte {
	if len(text) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), text)
}

func sizeText(field protowire.Number, text []byte) int {
	if len(text) == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeBytes(len(text))
}

// appendMessage appends an encoded message; one that is nil is absent.
func appendMessage(b []byte, field protowire.Number, message []byte) []byte {
	if message == nil {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), message)
}

func appendEntry(b []byte, field protowire.Number, p object.StoredPair) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	size := protowire.SizeTag(entryKey) + protowire.SizeBytes(len(p.Key)) + protowire.SizeTag(entryValue) + protowire.SizeBytes(len(p.Value))
	b = protowire.AppendVarint(b, uint64(size))
	b = protowire.AppendBytes(protowire.AppendTag(b, entryKey, protowire.BytesType), p.Key)
	return protowire.AppendBytes(protowire.AppendTag(b, entryValue, protowire.BytesType), p.Value)
}

func appendTime(b []byte, field protowire.Number, t time.Time) []byte {
	seconds, nanos := t.Unix(), t.Nanosecond()
	size := 0
	if seconds != 0 {
		size += protowire.SizeTag(timestampSeconds) + protowire.SizeVarint(uint64(seconds))
	}
	if nanos != 0 {
		size += protowire.SizeTag(timestampNanos) + protowire.SizeVarint(uint64(nanos))
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	if seconds != 0 {
		b = protowire.AppendVarint(protowire.AppendTag(b, timestampSeconds, protowire.VarintType), uint64(seconds))
	}
	if nanos != 0 {
		b = protowire.AppendVarint(protowire.AppendTag(b, timestampNanos, protowire.VarintType), uint64(nanos))
	}
	return b
}
