package cgroup

import (
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// message is a protobuf message that is being written. Fields that are 0 are left
// out, as proto3 has it.
type message []byte

func (m *message) uint(field protowire.Number, v uint64) {
	if v != 0 {
		*m = protowire.AppendVarint(protowire.AppendTag(*m, field, protowire.VarintType), v)
	}
}

func (m *message) double(field protowire.Number, v float64) {
	if v != 0 {
		*m = protowire.AppendFixed64(protowire.AppendTag(*m, field, protowire.Fixed64Type), math.Float64bits(v))
	}
}

func (m *message) string(field protowire.Number, v string) {
	if v != "" {
		*m = protowire.AppendString(protowire.AppendTag(*m, field, protowire.BytesType), v)
	}
}

func (m *message) packed(field protowire.Number, vs []uint64) {
	if len(vs) == 0 {
		return
	}
	var raw []byte
	for _, v := range vs {
		raw = protowire.AppendVarint(raw, v)
	}
	*m = protowire.AppendBytes(protowire.AppendTag(*m, field, protowire.BytesType), raw)
}

// sub writes a message as a field, empty or not.
func (m *message) sub(field protowire.Number, v message) {
	*m = protowire.AppendBytes(protowire.AppendTag(*m, field, protowire.BytesType), v)
}

// table writes the values of keys that are there.
func (m *message) table(keys []key, values map[string]uint64) {
	for _, k := range keys {
		m.uint(k.field, values[k.name])
	}
}

// key is a key in a file, or a file with a number, and its field.
type key struct {
	field protowire.Number
	name  string
}
