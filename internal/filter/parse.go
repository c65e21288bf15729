package filter

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

// parser reads one filter from left to right; pos is the byte offset of what
// is read next.
type parser struct {
	text string
	pos  int
}

func parse(text string) (allOf, error) {
	p := &parser{text: text}
	if err := p.checkText(); err != nil {
		return nil, err
	}
	var selectors allOf
	for {
		s, err := p.selector()
		if err != nil {
			return nil, err
		}
		selectors = append(selectors, s)
		if p.pos == len(p.text) {
			return selectors, nil
		}
		if p.text[p.pos] != ',' {
			return nil, p.fail(p.pos, "expected a comma or the end")
		}
		p.pos++
	}
}

// checkText rejects what no part of a filter may hold, so that the rest of the
// parser may index bytes.
func (p *parser) checkText() error {
	for i, r := range p.text {
		if r == 0 {
			return p.fail(i, "NUL is not allowed")
		}
		if r == utf8.RuneError { // Compat: U+FFFD itself too
			return p.fail(i, "not valid UTF-8")
		}
	}
	return nil
}

func (p *parser) selector() (selector, error) {
	path, err := p.path()
	if err != nil {
		return selector{}, err
	}
	s := selector{path: path}
	if p.pos == len(p.text) || p.text[p.pos] == ',' {
		return s, nil
	}
	p.skipSpace()
	if s.op, err = p.operator(); err != nil {
		return selector{}, err
	}
	p.skipSpace()
	at := p.pos
	if s.value, err = p.value(s.op); err != nil {
		return selector{}, err
	}
	if s.op == matches {
		// Differs from containerd: a malformed expression is an error here, not
		// a filter that matches nothing.
		if s.re, err = regexp.Compile(s.value); err != nil {
			return selector{}, p.fail(at, "%v", err)
		}
	}
	return s, nil
}

func (p *parser) path() ([]string, error) {
	var path []string
	for {
		part, err := p.part()
		if err != nil {
			return nil, err
		}
		path = append(path, part)
		if p.pos == len(p.text) || p.text[p.pos] != '.' {
			return path, nil
		}
		p.pos++
	}
}

func (p *parser) part() (string, error) {
	p.skipSpace()
	if p.pos < len(p.text) && p.text[p.pos] == '"' {
		return p.quoted()
	}
	start := p.pos
	for p.pos < len(p.text) && isName(p.text[p.pos]) {
		p.pos++
	}
	if p.pos == start {
		return "", p.fail(start, `expected a field name or a quoted one, such as labels."a.b"`)
	}
	return p.text[start:p.pos], nil
}

func (p *parser) operator() (operator, error) {
	start := p.pos
	for p.pos < len(p.text) && strings.IndexByte("=!~", p.text[p.pos]) >= 0 {
		p.pos++
	}
	switch op := p.text[start:p.pos]; op {
	case "==":
		return equal, nil
	case "!=":
		return notEqual, nil
	case "~=":
		return matches, nil
	case "":
		return 0, p.fail(start, `expected an operator (==, !=, ~=)`)
	default:
		return 0, p.fail(start, "unknown operator %s; there are ==, != and ~=", op)
	}
}

func (p *parser) value(op operator) (string, error) {
	if p.pos == len(p.text) {
		return "", p.fail(p.pos, `expected a value; the empty one is written ""`)
	}
	switch c := p.text[p.pos]; c {
	case '"':
		return p.quoted()
	case '/', '|':
		if op != matches {
			return "", p.fail(p.pos, `a value that begins with %c must be in double quotes`, c)
		}
		return p.quoted()
	case ',':
		return "", p.fail(p.pos, `expected a value; the empty one is written ""`)
	case '.', '=', '!', '~':
		return "", p.fail(p.pos, `a value that begins with %c must be in double quotes`, c)
	}
	rest := p.text[p.pos:]
	_, first := utf8.DecodeRuneInString(rest)
	end := strings.IndexFunc(rest[first:], func(r rune) bool { return r == ',' || unicode.IsSpace(r) || !unicode.IsGraphic(r) })
	if end < 0 {
		end = len(rest) - first
	}
	p.pos += first + end
	return rest[:first+end], nil
}

// quoted reads a literal that ends with the character it begins with.
func (p *parser) quoted() (string, error) {
	start, quote := p.pos, p.text[p.pos]
	p.pos++
	var out []byte
	for p.pos < len(p.text) {
		rest := p.text[p.pos:]
		switch {
		case rest[0] == quote:
			p.pos++
			return string(out), nil
		case rest[0] == '\n':
			return "", p.fail(p.pos, `a line break in quotes must be written \n`)
		case rest[0] == '\\' && len(rest) > 1 && rest[1] == quote:
			out = append(out, quote)
			p.pos += 2
			continue
		}
		// The quote characters are dealt with above, so none is special here.
		r, multibyte, tail, err := strconv.UnquoteChar(rest, 0)
		if err != nil {
			return "", p.fail(p.pos, `unknown escape; a backslash is written \\`)
		}
		if multibyte {
			out = utf8.AppendRune(out, r)
		} else {
			out = append(out, byte(r))
		}
		p.pos = len(p.text) - len(tail)
	}
	return "", p.fail(start, "no closing %c", quote)
}

func (p *parser) skipSpace() {
	rest := strings.TrimLeftFunc(p.text[p.pos:], unicode.IsSpace)
	p.pos = len(p.text) - len(rest)
}

func isName(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

// shown bounds how much of a filter an error repeats on either side of the place.
const shown = 64

// fail makes an error that points at the byte offset at.
func (p *parser) fail(at int, format string, args ...any) error {
	before, after := p.text[:at], p.text[at:]
	if len(before) > shown {
		before = "…" + strings.ToValidUTF8(before[len(before)-shown:], "")
	}
	if len(after) > shown {
		after = strings.ToValidUTF8(after[:shown], "") + "…"
	}
	return fmt.Errorf("filter, at byte %d (%q before, %q after): %s: %w",
		at, before, after, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}
