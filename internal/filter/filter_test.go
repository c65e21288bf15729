package filter

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

var object = AdaptorFunc(func(path []string) (string, bool) {
	switch path[0] {
	case "name":
		return "web-1", len(path) == 1
	case "empty":
		return "", true
	case "labels":
		return Label(map[string]string{
			"team":                "blue",
			"a.b/c":               "x",
			"very complex label":  "1,2",
			"with \"quotes\"":     "q",
			"containerd.io/gc.ok": "",
		}, path[1:])
	}
	return "", false
})

func TestMatch(t *testing.T) {
	for _, tc := range []struct {
		filter string
		want   bool
	}{
		{``, true},
		{`name`, true},
		{`other`, false},
		{`empty`, true},
		{`name==web-1`, true},
		{`name == web-1`, true},
		{` name==web-1`, true},
		{`name==web`, false},
		{`name!=web`, true},
		{`name!=web-1`, false},
		{`other!=x`, true},
		{`other!=""`, false},
		{`other==""`, false},
		{`empty==""`, true},
		{`name=="web-1"`, true},
		{`name=="web\x2d1"`, true},
		{`name=="web\0551"`, true},
		{`name=="web\u002d1"`, true},
		{`"name"==web-1`, true},
		{`name~=^web-[0-9]+$`, true},
		{`name~=^web-\d+$`, true}, // escapes are for quotes only
		{`name~=/^web-\\d$/`, true},
		{`name~=/web\/1/`, false},
		{`name~=|web-1|`, true},
		{`name~=|a\|web|`, true},
		{`name~="^web"`, true},
		{`name~=^db`, false},
		{`other~=".*"`, true}, // absent is empty
		{`labels.team`, true},
		{`labels`, false},
		{`labels.team==blue`, true},
		{`labels.teams`, false},
		{`labels."a.b/c"==x`, true},
		{`labels.a."b/c"==x`, true},
		{`labels."very complex label"=="1,2"`, true},
		{`labels."with \"quotes\""==q`, true},
		{`labels."containerd.io/gc.ok"`, true},
		{`labels."containerd.io/gc.ok"==""`, true},
		{`name==web-1,labels.team==blue`, true},
		{`name==web-1, labels.team==blue`, true},
		{`name==web-1,labels.team==red`, false},
		{`labels.team,name`, true},
		{`name==web|1`, false},
		{`name!=a"b`, true},
		{`name!=é√`, true},
		{`name==".x"`, false},
	} {
		f, err := ParseAll(tc.filter)
		if err != nil {
			t.Errorf("%s: %v", tc.filter, err)
			continue
		}
		if got := f.Match(object); got != tc.want {
			t.Errorf("%s: match is %v", tc.filter, got)
		}
	}
}

func TestAnyOfSeveral(t *testing.T) {
	for _, tc := range []struct {
		filters []string
		want    bool
	}{
		{nil, true},
		{[]string{"name==x", "name==web-1"}, true},
		{[]string{"name==x", "name==y"}, false},
		{[]string{"name==x", ""}, true},
	} {
		f, err := ParseAll(tc.filters...)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Match(object); got != tc.want {
			t.Errorf("%q: match is %v", tc.filters, got)
		}
	}
}

func TestMalformed(t *testing.T) {
	for _, tc := range []struct{ filter, place string }{
		{`,`, `byte 0`},
		{` `, `byte 1`},
		{`name,`, `byte 5`},
		{`name.`, `byte 5`},
		{`.name`, `byte 0`},
		{`name==`, `byte 6`},
		{`name==,x`, `byte 6`},
		{`name=x`, `byte 4`},
		{`name===x`, `byte 4`},
		{`name-x`, `byte 4`},
		{`name x`, `byte 5`},
		{`name==a b`, `byte 7`},
		{`name==a `, `byte 7`},
		{`name==a ,id`, `byte 7`},
		{`name `, `byte 5`},
		{`name .x`, `byte 5`},
		{`name==.x`, `byte 6`},
		{`name== =x`, `byte 7`},
		{"name==a\x01", `byte 7`},
		{"name==\uFFFD", `byte 6`},
		{`name=="a"b`, `byte 9`},
		{`name=="a`, `byte 6`},
		{`name=="a\d"`, `byte 8`},
		{`name=="a\'"`, `byte 8`},
		{`name=="a\`, `byte 8`},
		{"name==\"a\nb\"", `byte 8`},
		{`name==/a/`, `byte 6`},
		{`name==|a|`, `byte 6`},
		{`/name/==a`, `byte 0`},
		{`name~=[`, `byte 6`},
		{`name~=/\d/`, `byte 7`},
		{"name==a\x00", `byte 7`},
		{"name==a\xff", `byte 7`},
	} {
		_, err := ParseAll("name==fine", tc.filter)
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, want an invalid argument", tc.filter, err)
			continue
		}
		if !strings.Contains(err.Error(), tc.place+" ") {
			t.Errorf("%q: error does not say %s: %v", tc.filter, tc.place, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		``, `name==foo`, `labels."a.b/c"!=x,id~=^w`, `name~=/a\/b/`, `name~=|a|,x`, `a=="\U0001F600\xff\017"`,
		`a==b,,`, "a==\xff", `a.b.c."d"`, `a~=(`, `"\`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := ParseAll(text)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("%q: %v is not an invalid argument", text, err)
			}
			if len(err.Error()) > 2048+len(text) {
				t.Fatalf("%q: error of %d bytes", text, len(err.Error()))
			}
			return
		}
		parsed.Match(object)
	})
}

func BenchmarkMatch(b *testing.B) {
	f, err := ParseAll(`labels."a.b/c"==y`, `name==web-1,labels.team==blue`)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if !f.Match(object) {
			b.Fatal("no match")
		}
	}
}
