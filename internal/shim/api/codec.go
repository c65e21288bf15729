// Package api is the messages that a shim exchanges with its daemon: the task API
// (containerd.task.v2, which version 3 has not changed), task events, the options
// of the runc shim and its RuntimeInfo, as plain structs.
//
// The generated packages say the same, but register every message with the protobuf
// runtime when a program starts, and learn each by reflection when it is first
// used. A shim pays for that in memory for each container and in time for each
// start, twice, since the container's init is the same program. So each type here
// lists its fields (fields()), and one small codec does the rest. Tests hold the
// types to the generated ones.
//
// Unknown fields are skipped. Strings are not required to be UTF-8.
package api

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/runtime/protoiface"
)

// Message is a type of this package, which ttrpc takes for a protobuf message. Of
// that only what the codecs ask for is there; what needs a descriptor (text or
// JSON form, comparing, cloning) panics.
type Message interface {
	protoreflect.ProtoMessage
	fields() []field
}

// field is a number and a pointer to a *string, *[]string, *[]byte, *bool, *uint32,
// *int32, *int64, *map[string]string, or a nested made by one or many.
type field struct {
	num protowire.Number
	ptr any
}

// nested is a field of messages.
type nested struct {
	encode func(b []byte, num protowire.Number) []byte
	decode func(raw []byte) error
}

type pointer[T any] interface {
	*T
	Message
}

// one is a field with a message, nil when it is absent.
func one[T any, P pointer[T]](p **T) nested {
	return nested{
		encode: func(b []byte, num protowire.Number) []byte {
			if *p == nil {
				return b
			}
			return appendMessage(b, num, P(*p))
		},
		decode: func(raw []byte) error {
			if *p == nil {
				*p = new(T)
			}
			return decode(raw, P(*p))
		},
	}
}

// many is a repeated field of messages.
func many[T any, P pointer[T]](p *[]*T) nested {
	return nested{
		encode: func(b []byte, num protowire.Number) []byte {
			for _, m := range *p {
				b = appendMessage(b, num, P(m))
			}
			return b
		},
		decode: func(raw []byte) error {
			m := new(T)
			*p = append(*p, m)
			return decode(raw, P(m))
		},
	}
}

func appendMessage(b []byte, num protowire.Number, m Message) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), encode(nil, m))
}

func appendVarint(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func appendBytes[T string | []byte](b []byte, num protowire.Number, v T) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	return append(protowire.AppendVarint(b, uint64(len(v))), v...)
}

// encode appends m to b, without fields that are empty.
func encode(b []byte, m Message) []byte {
	for _, f := range m.fields() {
		switch p := f.ptr.(type) {
		case *string:
			if *p != "" {
				b = appendBytes(b, f.num, *p)
			}
		case *[]byte:
			if len(*p) > 0 {
				b = appendBytes(b, f.num, *p)
			}
		case *[]string:
			for _, s := range *p {
				b = appendBytes(b, f.num, s)
			}
		case *map[string]string:
			for k, v := range *p {
				b = appendMessage(b, f.num, &entry{k, v})
			}
		case *bool:
			if *p {
				b = appendVarint(b, f.num, 1)
			}
		case *uint32:
			b = appendVarint(b, f.num, uint64(*p))
		case *int32:
			b = appendVarint(b, f.num, uint64(int64(*p)))
		case *int64:
			b = appendVarint(b, f.num, uint64(*p))
		case nested:
			b = p.encode(b, f.num)
		default:
			panic(fmt.Sprintf("field %d of %T has type %T", f.num, m, f.ptr))
		}
	}
	return b
}

// entry is an element of a map.
type entry struct{ key, value string }

func (e *entry) fields() []field { return []field{{1, &e.key}, {2, &e.value}} }

// decode sets what raw has, which is not kept.
func decode(raw []byte, m Message) error {
	fields := m.fields()
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return protowire.ParseError(n)
		}
		raw = raw[n:]
		size := protowire.ConsumeFieldValue(num, typ, raw)
		if size < 0 {
			return protowire.ParseError(size)
		}
		for _, f := range fields {
			if f.num == num {
				if err := f.decode(typ, raw[:size]); err != nil {
					return fmt.Errorf("field %d: %w", num, err)
				}
			}
		}
		raw = raw[size:]
	}
	return nil
}

var errWireType = errors.New("the field has another wire type")

func (f field) decode(typ protowire.Type, raw []byte) error {
	switch f.ptr.(type) {
	case *bool, *uint32, *int32, *int64:
		if typ != protowire.VarintType {
			return errWireType
		}
		v, _ := protowire.ConsumeVarint(raw)
		switch p := f.ptr.(type) {
		case *bool:
			*p = v != 0
		case *uint32:
			*p = uint32(v)
		case *int32:
			*p = int32(v)
		case *int64:
			*p = int64(v)
		}
		return nil
	}
	if typ != protowire.BytesType {
		return errWireType
	}
	v, _ := protowire.ConsumeBytes(raw)
	switch p := f.ptr.(type) {
	case *string:
		*p = string(v)
	case *[]byte:
		*p = append([]byte(nil), v...)
	case *[]string:
		*p = append(*p, string(v))
	case *map[string]string:
		var e entry
		if err := decode(v, &e); err != nil {
			return err
		}
		if *p == nil {
			*p = map[string]string{}
		}
		(*p)[e.key] = e.value
	case nested:
		return p.decode(v)
	}
	return nil
}

// Marshal encodes a message.
func Marshal(m Message) []byte { return encode([]byte{}, m) }

// Unmarshal decodes raw into m, which is empty.
func Unmarshal(raw []byte, m Message) error { return decode(raw, m) }

// reflection is a message as the protobuf runtime sees it: something that encodes
// and decodes itself.
type reflection struct {
	protoreflect.Message // nil
	m                    Message
}

func (r reflection) Interface() protoreflect.ProtoMessage { return r.m }
func (r reflection) IsValid() bool                        { return true }
func (r reflection) ProtoMethods() *protoiface.Methods {
	return &protoiface.Methods{
		Marshal: func(in protoiface.MarshalInput) (protoiface.MarshalOutput, error) {
			return protoiface.MarshalOutput{Buf: encode(in.Buf, in.Message.(reflection).m)}, nil
		},
		Unmarshal: func(in protoiface.UnmarshalInput) (protoiface.UnmarshalOutput, error) {
			return protoiface.UnmarshalOutput{Flags: protoiface.UnmarshalInitialized}, decode(in.Buf, in.Message.(reflection).m)
		},
		CheckInitialized: func(protoiface.CheckInitializedInput) (protoiface.CheckInitializedOutput, error) {
			return protoiface.CheckInitializedOutput{}, nil
		},
	}
}

func (e *entry) ProtoReflect() protoreflect.Message { return reflection{m: e} }
