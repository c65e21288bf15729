package config

import (
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// place is where something stands in a file. Rows and columns count from 1.
type place struct {
	file        string
	row, column int
}

func (p place) String() string { return fmt.Sprintf("%s:%d:%d", p.file, p.row, p.column) }

// node is a part of a file that still knows its place: a table when table is
// not nil, a list when list is not nil, otherwise a value (string, int64,
// float64, bool, or one of TOML's times).
type node struct {
	place
	table map[string]*node
	list  []*node
	value any
}

func newTable(at place) *node { return &node{place: at, table: map[string]*node{}} }

// at finds what is below n by its keys; nil when there is nothing.
func (n *node) at(keys ...string) *node {
	for _, key := range keys {
		if n == nil || n.table == nil {
			return nil
		}
		n = n.table[key]
	}
	return n
}

// isZero tells whether n says no more than leaving it out would.
func (n *node) isZero() bool {
	switch v := n.value.(type) {
	case string:
		return v == ""
	case int64:
		return v == 0
	case float64:
		return v == 0
	case bool:
		return !v
	}
	return n.value == nil && len(n.table) == 0 && len(n.list) == 0
}

// plain is n as the Go values that a TOML decoder makes.
func (n *node) plain() any {
	switch {
	case n.table != nil:
		m := make(map[string]any, len(n.table))
		for key, child := range n.table {
			m[key] = child.plain()
		}
		return m
	case n.list != nil:
		l := make([]any, len(n.list))
		for i, child := range n.list {
			l[i] = child.plain()
		}
		return l
	}
	return n.value
}

// parse reads a file. errdefs.ErrInvalidArgument, with its place, when it is
// not TOML.
func parse(file string, data []byte) (*node, error) {
	var values map[string]any
	if err := toml.Unmarshal(data, &values); err != nil {
		return nil, placed(file, err)
	}
	s := &survey{file: file, offsets: map[string]int{}, lists: map[string]int{}}
	s.lines = append(s.lines, 0)
	for i, b := range data {
		if b == '\n' {
			s.lines = append(s.lines, i+1)
		}
	}
	s.read(data)
	root := s.build(values, "", place{file, 1, 1})
	if root.table == nil {
		root.table = map[string]*node{}
	}
	return root, nil
}

// placed says where in a file a mistake of syntax is.
func placed(name string, err error) error {
	if d, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, column := d.Position()
		where := ""
		if key := strings.Join(d.Key(), "."); key != "" {
			where = key + ": "
		}
		return fmt.Errorf("%s:%d:%d: %s%s: %w", name, row, column, where, strings.TrimPrefix(d.Error(), "toml: "), errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("%s: %v: %w", name, err, errdefs.ErrInvalidArgument)
}

// survey finds where the keys of a file stand. A path is the keys joined by
// NUL, with "#n" for the nth element of a list.
type survey struct {
	file    string
	lines   []int          // offsets at which lines begin
	offsets map[string]int // path → offset of its key
	lists   map[string]int // path of a list of tables → its elements so far
}

func (s *survey) read(data []byte) {
	var p unstable.Parser
	p.Reset(data)
	prefix := ""
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table:
			prefix = s.enter("", e.Key())
		case unstable.ArrayTable:
			prefix = s.enter("", e.Key())
			if i := strings.LastIndex(prefix, "\x00#"); i >= 0 && s.lists[prefix[:i]] > 0 {
				prefix = prefix[:i]
			}
			s.lists[prefix]++
			prefix = s.element(prefix)
		case unstable.KeyValue:
			s.keyValue(prefix, e)
		}
	}
}

func (s *survey) element(path string) string {
	return fmt.Sprintf("%s\x00#%d", path, s.lists[path]-1)
}

// enter follows a dotted key, through the newest elements of lists.
func (s *survey) enter(path string, keys unstable.Iterator) string {
	for keys.Next() {
		k := keys.Node()
		path += "\x00" + string(k.Data)
		if _, ok := s.offsets[path]; !ok {
			s.offsets[path] = int(k.Raw.Offset)
		}
		if s.lists[path] > 0 {
			path = s.element(path)
		}
	}
	return path
}

func (s *survey) keyValue(path string, e *unstable.Node) {
	s.value(s.enter(path, e.Key()), e.Value())
}

func (s *survey) value(path string, v *unstable.Node) {
	children := v.Children()
	switch v.Kind {
	case unstable.InlineTable:
		for children.Next() {
			s.keyValue(path, children.Node())
		}
	case unstable.Array:
		for i := 0; children.Next(); i++ {
			s.value(fmt.Sprintf("%s\x00#%d", path, i), children.Node())
		}
	}
}

// build makes nodes of values; what the survey has not seen stands where its
// parent does.
func (s *survey) build(v any, path string, at place) *node {
	if offset, ok := s.offsets[path]; ok {
		line := sort.SearchInts(s.lines, offset+1) - 1
		at = place{s.file, line + 1, offset - s.lines[line] + 1}
	}
	n := &node{place: at}
	switch v := v.(type) {
	case map[string]any:
		n.table = make(map[string]*node, len(v))
		for key, child := range v {
			n.table[key] = s.build(child, path+"\x00"+key, at)
		}
	case []any:
		n.list = make([]*node, len(v))
		for i, child := range v {
			n.list[i] = s.build(child, fmt.Sprintf("%s\x00#%d", path, i), at)
		}
	default:
		n.value = v
	}
	return n
}
