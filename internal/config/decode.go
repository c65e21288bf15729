package config

import (
	"encoding"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Warning is something in a file that has no effect, or not the expected one.
type Warning struct {
	File        string
	Row, Column int
	Text        string
}

func (w Warning) String() string {
	return fmt.Sprintf("%s:%d:%d: %s", w.File, w.Row, w.Column, w.Text)
}

func (p place) warning(format string, args ...any) Warning {
	return Warning{p.file, p.row, p.column, fmt.Sprintf(format, args...)}
}

// decoder lays a tree over a struct that holds defaults: a key that is given
// replaces its value, tables are entered. Unknown keys become warnings, values
// of the wrong type errors.
type decoder struct {
	warnings []Warning
	errs     []error
}

func (d *decoder) decode(n *node, to any) error {
	d.into(n, nil, reflect.ValueOf(to).Elem())
	return errors.Join(d.errs...)
}

func (d *decoder) wrong(n *node, key []string, wanted string) {
	d.errs = append(d.errs, fmt.Errorf("%s: %s: %s expected, found %s: %w", n.place, keyName(key), wanted, n.kind(), errdefs.ErrInvalidArgument))
}

// kind names what n is, for messages.
func (n *node) kind() string {
	switch v := n.value.(type) {
	case nil:
		if n.table != nil {
			return "a table"
		}
		return "a list"
	case string:
		return fmt.Sprintf("the string %q", v)
	case int64, float64:
		return fmt.Sprintf("the number %v", v)
	case bool:
		return fmt.Sprintf("%v", v)
	default:
		return fmt.Sprintf("the time %v", v)
	}
}

func (d *decoder) into(n *node, key []string, v reflect.Value) {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.text(n, key, u)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		d.into(n, key, v.Elem())
	case reflect.Struct:
		d.structure(n, key, v)
	case reflect.Map:
		d.mapping(n, key, v)
	case reflect.Slice:
		if n.list == nil {
			d.wrong(n, key, "a list")
			return
		}
		out := reflect.MakeSlice(v.Type(), len(n.list), len(n.list))
		for i, child := range n.list {
			d.into(child, key, out.Index(i))
		}
		v.Set(out)
	case reflect.Interface:
		v.Set(reflect.ValueOf(n.plain()))
	default:
		d.scalar(n, key, v)
	}
}

func (d *decoder) text(n *node, key []string, u encoding.TextUnmarshaler) {
	s, ok := n.value.(string)
	if !ok {
		d.wrong(n, key, "a string")
		return
	}
	if err := u.UnmarshalText([]byte(s)); err != nil {
		d.errs = append(d.errs, fmt.Errorf("%s: %s: %v: %w", n.place, keyName(key), err, errdefs.ErrInvalidArgument))
	}
}

func (d *decoder) scalar(n *node, key []string, v reflect.Value) {
	switch value := n.value.(type) {
	case string:
		if v.Kind() == reflect.String {
			v.SetString(value)
			return
		}
	case bool:
		if v.Kind() == reflect.Bool {
			v.SetBool(value)
			return
		}
	case int64:
		if v.Kind() == reflect.Int {
			v.SetInt(value)
			return
		}
		if v.Kind() == reflect.Float64 {
			v.SetFloat(float64(value))
			return
		}
	case float64:
		if v.Kind() == reflect.Float64 {
			v.SetFloat(value)
			return
		}
	}
	wanted := map[reflect.Kind]string{reflect.String: "a string", reflect.Bool: "true or false", reflect.Int: "a whole number", reflect.Float64: "a number"}
	d.wrong(n, key, wanted[v.Kind()])
}

func (d *decoder) mapping(n *node, key []string, v reflect.Value) {
	if n.table == nil {
		d.wrong(n, key, "a table")
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), v.Len()+len(n.table))
	for it := v.MapRange(); it.Next(); {
		out.SetMapIndex(it.Key(), it.Value())
	}
	for _, name := range slices.Sorted(maps.Keys(n.table)) {
		element := reflect.New(v.Type().Elem()).Elem()
		if old := out.MapIndex(reflect.ValueOf(name)); old.IsValid() && element.Kind() == reflect.Struct {
			element.Set(old)
		}
		d.into(n.table[name], append(slices.Clip(key), name), element)
		out.SetMapIndex(reflect.ValueOf(name), element)
	}
	v.Set(out)
}

func (d *decoder) structure(n *node, key []string, v reflect.Value) {
	if n.table == nil {
		d.wrong(n, key, "a table")
		return
	}
	fields := fieldsOf(v)
	for _, name := range slices.Sorted(maps.Keys(n.table)) {
		child, path := n.table[name], append(slices.Clip(key), name)
		field, ok := fields[name]
		if !ok {
			// As TOML decoders for Go do: BinaryName and binaryname are one.
			for known, f := range fields {
				if strings.EqualFold(known, name) {
					field, ok = f, true
				}
			}
		}
		if !ok {
			d.warnings = append(d.warnings, child.warning("unknown key %q is ignored%s", keyName(path), didYouMean(name, maps.Keys(fields))))
			continue
		}
		d.into(child, path, field)
	}
}

// fieldsOf returns the fields of a struct by their TOML names.
func fieldsOf(v reflect.Value) map[string]reflect.Value {
	fields := make(map[string]reflect.Value, v.NumField())
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("toml"), ",")
		if name != "" && name != "-" {
			fields[name] = v.Field(i)
		}
	}
	return fields
}

// keyName writes a path as TOML does.
func keyName(keys []string) string {
	out := make([]string, len(keys))
	for i, k := range keys {
		if out[i] = k; strings.ContainsFunc(k, func(r rune) bool {
			return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
		}) || k == "" {
			out[i] = "'" + k + "'"
		}
	}
	return strings.Join(out, ".")
}
