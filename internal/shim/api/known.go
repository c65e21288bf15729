package api

import (
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Empty is google.protobuf.Empty.
type Empty struct {
}

// Any is google.protobuf.Any.
type Any struct {
	TypeUrl string
	Value   []byte
}

// Timestamp is google.protobuf.Timestamp.
type Timestamp struct {
	Seconds int64
	Nanos   int32
}

func (m *Empty) fields() []field {
	return []field{}
}

func (m *Any) fields() []field {
	return []field{{1, &m.TypeUrl}, {2, &m.Value}}
}

func (m *Timestamp) fields() []field {
	return []field{{1, &m.Seconds}, {2, &m.Nanos}}
}

func (m *Empty) ProtoReflect() protoreflect.Message     { return reflection{m: m} }
func (m *Empty) Reset()                                 { *m = Empty{} }
func (m *Any) ProtoReflect() protoreflect.Message       { return reflection{m: m} }
func (m *Any) Reset()                                   { *m = Any{} }
func (m *Timestamp) ProtoReflect() protoreflect.Message { return reflection{m: m} }
func (m *Timestamp) Reset()                             { *m = Timestamp{} }

// Time is t as a Timestamp, nil when it is the zero time.
func Time(t time.Time) *Timestamp {
	if t.IsZero() {
		return nil
	}
	return &Timestamp{Seconds: t.Unix(), Nanos: int32(t.Nanosecond())}
}
