// Package output prints what ctr's commands find: tables, JSON, Go templates,
// sizes and labels. Results go to stdout, warnings to stderr.
package output

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"text/template"

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
			fmt.Fprintln(w, row(r))
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
	for _, r := range rows {
		if err := execute(t, r); err != nil {
			return err
		}
	}
	return nil
}

// execute prints one thing and ends the line.
func execute(t *template.Template, v any) error {
	if err := t.Execute(os.Stdout, v); err != nil {
		if names := fields(v); names != "" && strings.Contains(err.Error(), "can't evaluate field") {
			_, field, _ := strings.Cut(err.Error(), "can't evaluate field ")
			field, _, _ = strings.Cut(field, " ")
			return fmt.Errorf("--format: there is no field %s; there are %s", field, names)
		}
		return fmt.Errorf("--format: %w", err)
	}
	fmt.Println()
	return nil
}

// fields names those of a struct, empty for another type.
func fields(v any) string {
	t := reflect.TypeOf(v)
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || t.Kind() != reflect.Struct {
		return ""
	}
	var names []string
	for f := range t.Fields() {
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
	return execute(t, v)
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
func Warn(format string, args ...any) { fmt.Fprintf(os.Stderr, "ctr: "+format+"\n", args...) }

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
		pairs = append(pairs, key+"="+m[key])
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
