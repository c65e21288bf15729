package object

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Any is a serialised message with the name of its type: what a client handed
// over to be stored or passed on without being understood (an OCI spec, runtime
// options, container extensions).
type Any struct {
	TypeURL string
	Value   []byte
}

// MarshalBinary encodes a in the wire format of google.protobuf.Any (field 1
// the type URL, field 2 the value), the form in which metadata records hold it.
func (a Any) MarshalBinary() ([]byte, error) {
	b := make([]byte, 0, len(a.TypeURL)+len(a.Value)+2+2*binary.MaxVarintLen32)
	if a.TypeURL != "" {
		b = append(b, 1<<3|2)
		b = binary.AppendUvarint(b, uint64(len(a.TypeURL)))
		b = append(b, a.TypeURL...)
	}
	if len(a.Value) > 0 {
		b = append(b, 2<<3|2)
		b = binary.AppendUvarint(b, uint64(len(a.Value)))
		b = append(b, a.Value...)
	}
	return b, nil
}

var errAnyTruncated = errors.New("stored Any ends in the middle of a field")

// UnmarshalBinary decodes what MarshalBinary or a protobuf encoder wrote.
// Unknown length-delimited fields are skipped; anything else is an error. The
// value is copied: b may be reused.
func (a *Any) UnmarshalBinary(b []byte) error {
	*a = Any{}
	url, value, err := splitAny(b)
	if err != nil {
		return err
	}
	a.TypeURL = string(url)
	if value != nil {
		a.Value = append([]byte(nil), value...)
	}
	return nil
}

// CheckAny tells what UnmarshalBinary would say of b, and whether a client could
// decode it.
func CheckAny(b []byte) error {
	url, _, err := splitAny(b)
	if err == nil && !utf8.Valid(url) {
		err = errors.New("the type URL of a stored Any is not UTF-8")
	}
	return err
}

// splitAny returns the fields of a stored Any, as parts of b.
func splitAny(b []byte) (url, value []byte, err error) {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, nil, errAnyTruncated
		}
		b = b[n:]
		if tag&7 != 2 {
			return nil, nil, fmt.Errorf("stored Any has field %d of wire type %d, only length-delimited fields belong there", tag>>3, tag&7)
		}
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return nil, nil, errAnyTruncated
		}
		field := b[n : n+int(size)]
		b = b[n+int(size):]
		switch tag >> 3 {
		case 1:
			url = field
		case 2:
			value = field
		}
	}
	return url, value, nil
}
