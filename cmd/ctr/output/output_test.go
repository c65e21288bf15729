package output

import (
	"io"
	"os"
	"strings"
	"testing"
)

type inner struct{ A, B string }

type row struct {
	Name  string
	Inner inner
	List  []inner
	Any   map[string]any
}

// printed is what fn writes to stdout.
func printed(t *testing.T, fn func() error) (string, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	before := os.Stdout
	os.Stdout = w
	defer func() { os.Stdout = before }()
	failed := fn()
	w.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), failed
}

// TestTemplates gives a line for each row, or one error that says what there is.
func TestTemplates(t *testing.T) {
	rows := []row{{Name: "x", List: []inner{{}}, Any: map[string]any{"in": &inner{A: "a"}}}, {Name: "y"}}
	for _, c := range []struct{ format, out, err string }{
		{format: "{{.Name}}", out: "x\ny\n"},
		{format: "{{.Inner.A}}-{{json .Name}}", out: "-\"x\"\n-\"y\"\n"},
		{format: "Name", err: `--format "Name" is none of table, json and a Go template`},
		{format: "{{.Name", err: "unclosed action"},
		{format: "{{.Name}} {{.Foo}}", err: "no field Foo; there are .Name, .Inner, .List, .Any"},
		{format: "{{.Inner.Foo}}", err: "no field Foo; there are .A, .B"},
		{format: "{{.Any.in.Foo}}", err: "no field Foo; there are .A, .B"},
		{format: "{{range .List}}{{.Foo}}{{end}}", err: "no field Foo in inner"},
	} {
		out, err := printed(t, func() error { return List(c.format, rows, Narrow, "", nil) })
		if out != c.out || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v; want %q, %s", c.format, out, err, c.out, c.err)
		}
	}
	if Check("{{") == nil || Check("yaml") == nil || Check("json") != nil || Check("{{.X}}") != nil {
		t.Error("Check takes what is no format, or refuses one")
	}
}

// TestControlCharacters do not reach a terminal, nor break a table.
func TestControlCharacters(t *testing.T) {
	labels := Labels(map[string]string{"k": "\x1b[31mred\ttab\nnl\u009b", "ok": "ünï"})
	out, err := printed(t, func() error {
		return List("", []string{labels}, Narrow, "NAME\tLABELS\t", func(s string) string { return "n\t" + s + "\t" })
	})
	want := "NAME LABELS                              \nn    k=\\x1b[31mred\\ttab\\nnl\\u009b,ok=ünï \n"
	if err != nil || out != want {
		t.Errorf("%v, got\n%swant\n%s", err, out, want)
	}
	if got := Message("one\ntwo\x1b]0;x\a"); got != `one; two\x1b]0;x\a` {
		t.Errorf("message %s", got)
	}
}
