// Package output prints what ctr's commands find: tables, JSON, Go templates,
// sizes and labels. Results go to stdout, warnings to stderr.
package output

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"text/template"
	"unicode"

	"google.golang.org/protobuf/types/known/anypb"
)

// Style is how a table's columns are spaced.
type Style uint8

// The styles of containerd's ctr: columns four spaces apart (Wide with a least
// width of four), one space apart, and padded with tabs.
const (
	Wide Style = iota
	Spaced
	Narrow
	Tabbed
)

// Table starts a table on w; Flush it.
func (s Style) Table(w io.Writer) *tabwriter.Writer {
	switch s {
	case Wide:
		return tabwriter.NewWriter(w, 4, 8, 4, ' ', 0)
	case Spaced:
		return tabwriter.NewWriter(w, 1, 8, 4, ' ', 0)
	case Tabbed:
		return tabwriter.NewWriter(w, 1, 8, 1, '\t', 0)
	}
	return tabwriter.NewWriter(w, 1, 8, 1, ' ', 0)
}

// List prints rows in a format: "" or table (header and row, cells ended by
// tabs), json (an array), or a Go template that is executed for each row.
func List[T any](format string, rows []T, style Style, header string, row func(T) string) error {
	switch format {
	case "", "table":
		out := bufio.NewWriter(os.Stdout)
		w := style.Table(out)
		fmt.Fprintln(w, header)
		for _, r := range rows {
			fmt.Fprintln(w, printable(row(r)))
		}
		if err := w.Flush(); err != nil {
			return err
		}
		return out.Flush()
	case "json":
		if rows == nil {
			rows = []T{}
		}
		return JSON(rows)
	}
	t, err := parse(format)
	if err != nil {
		return err
	}
	return execute(t, rows)
}

// Names prints a line for each row: what --quiet leaves of a list, for scripts.
func Names[T any](rows []T, name func(T) string) error {
	out := bufio.NewWriter(os.Stdout)
	for _, r := range rows {
		fmt.Fprintln(out, name(r))
	}
	return out.Flush()
}

// execute prints a line for each row, or none of them.
func execute[T any](t *template.Template, rows []T) error {
	var out bytes.Buffer
	for _, r := range rows {
		if err := t.Execute(&out, r); err != nil {
			return explain(err, r)
		}
		out.WriteByte('\n')
	}
	_, err := os.Stdout.Write(out.Bytes())
	return err
}

// explain names the fields that there are where a template wants another one.
func explain(err error, row any) error {
	before, after, ok := strings.Cut(err.Error(), "can't evaluate field ")
	if !ok {
		return fmt.Errorf("--format: %w", err)
	}
	field, holder, _ := strings.Cut(after, " in type ")
	_, path, _ := strings.Cut(before, "<") // of what is evaluated, such as .Target.Foo
	path, _, _ = strings.Cut(path, ">")
	v := reflect.ValueOf(row)
	for _, name := range strings.Split(strings.Trim(path, "."), ".") {
		if name == field {
			break
		}
		if v = member(v, name); !v.IsValid() {
			break
		}
	}
	names := fields(v)
	// Inside of range or with, the path does not begin at the row.
	if names == "" || holder != "interface {}" && reflect.Indirect(v).Type().String() != strings.TrimPrefix(holder, "*") {
		return fmt.Errorf("--format: there is no field %s in %s", field, holder[strings.LastIndexByte(holder, '.')+1:])
	}
	return fmt.Errorf("--format: there is no field %s; there are %s", field, names)
}

// member is a field of a struct or an entry of a map, invalid when there is none.
func member(v reflect.Value, name string) reflect.Value {
	switch v = reflect.Indirect(v); v.Kind() {
	case reflect.Struct:
		v = v.FieldByName(name)
	case reflect.Map:
		v = v.MapIndex(reflect.ValueOf(name))
	default:
		return reflect.Value{}
	}
	if v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	return v
}

// fields names those of a struct, empty for another type.
func fields(v reflect.Value) string {
	if v = reflect.Indirect(v); v.Kind() != reflect.Struct {
		return ""
	}
	var names []string
	for f := range v.Type().Fields() {
		if f.IsExported() {
			names = append(names, "."+f.Name)
		}
	}
	return strings.Join(names, ", ")
}

// Row prints one of a stream of things: as JSON on a line, or with a Go template.
func Row(format string, v any) error {
	if format != "json" {
		return One(format, v)
	}
	b, err := json.Marshal(v)
	if err == nil {
		_, err = os.Stdout.Write(append(b, '\n'))
	}
	return err
}

// One prints a single thing: as JSON, or with a Go template.
func One(format string, v any) error {
	switch format {
	case "", "json", "table":
		return JSON(v)
	}
	t, err := parse(format)
	if err != nil {
		return err
	}
	return execute(t, []any{v})
}

// Check is an error when format is none: a command says so before it does anything.
// Compat: some commands of containerd's ctr call the table default.
func Check(format string) error {
	switch format {
	case "", "json", "table", "default":
		return nil
	}
	_, err := parse(format)
	return err
}

func parse(format string) (*template.Template, error) {
	if !strings.Contains(format, "{{") {
		return nil, fmt.Errorf("--format %q is none of table, json and a Go template such as '{{.ID}}'", format)
	}
	t, err := template.New("format").Funcs(template.FuncMap{"json": func(v any) (string, error) {
		b, err := json.Marshal(v)
		return string(b), err
	}}).Parse(format)
	if err != nil {
		return nil, fmt.Errorf("--format: %w", err)
	}
	return t, nil
}

// JSON prints v with an indent of four spaces.
func JSON(v any) error {
	b, err := json.MarshalIndent(v, "", "    ")
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(b, '\n'))
	return err
}

// Line prints a line of the result.
func Line(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// Warn prints a line on stderr.
func Warn(format string, args ...any) {
	fmt.Fprintln(os.Stderr, "ctr:", Message(fmt.Sprintf(format, args...)))
}

// printable writes the control characters of s, tabs excepted, as Go does: what
// comes from images and registries must neither break a table nor steer a terminal.
func printable(s string) string {
	control := func(r rune) bool { return r != '\t' && unicode.IsControl(r) }
	if strings.IndexFunc(s, control) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if control(r) {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// Message is s on one line that a terminal can be trusted with: line ends become
// "; ", other control characters visible.
func Message(s string) string {
	return printable(strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' }), "; "))
}

// Dash is s, or - when it is empty.
func Dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// Labels are key=value pairs in the order of their keys, joined by commas.
func Labels(m map[string]string) string {
	pairs := make([]string, 0, len(m))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		pairs = append(pairs, strings.ReplaceAll(key+"="+m[key], "\t", `\t`))
	}
	return strings.Join(pairs, ",")
}

// Any is a serialised message as JSON shows it.
type Any struct {
	TypeURL string `json:"type_url,omitempty"`
	Value   []byte `json:"value,omitempty"`
}

// ViewAny of nil is nil.
func ViewAny(a *anypb.Any) *Any {
	if a == nil {
		return nil
	}
	return &Any{TypeURL: a.TypeUrl, Value: a.Value}
}

// Size prints bytes with binary prefixes and one decimal: 1.7 MiB.
func Size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}
