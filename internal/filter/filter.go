// Package filter is the language in which clients select objects.
//
//	filter    = selector { "," selector }          all selectors must match
//	selector  = path [ operator value ]            without operator: the field is present
//	path      = part { "." part }
//	part      = name | quoted                      name: letters, digits and "_"
//	operator  = "==" | "!=" | "~="                 "~=" matches a regular expression (RE2)
//	value     = word | quoted                      word: up to the next comma or space; begins with
//	                                               none of . , = ! ~ / | "
//	quoted    = a Go string literal in "double quotes"; the value of "~=" may
//	            also be quoted in /slashes/ or |bars|, with the same escapes
//
// Examples: name==foo, labels."a.b/c"!=x, id~=^web-, labels.team. Spaces may
// stand before a name, an operator and a value, nowhere else. Several filters given together match when
// any of them does; an empty filter matches everything.
//
// A field that is absent has the empty value: it satisfies != any other value
// and any regular expression that matches the empty string, as in containerd.
package filter

import (
	"regexp"
	"strings"
)

// Adaptor gives a filter the fields of an object.
type Adaptor interface {
	// Field returns the value at the path, and whether it is present.
	Field(path []string) (value string, present bool)
}

// AdaptorFunc is a function that is an Adaptor.
type AdaptorFunc func(path []string) (string, bool)

func (f AdaptorFunc) Field(path []string) (string, bool) { return f(path) }

// Label looks up the label that the rest of a path names, for an Adaptor's
// "labels" field. The parts are joined by dots, so that labels.a.b and
// labels."a.b" name the same label.
func Label(labels map[string]string, rest []string) (string, bool) {
	if len(rest) == 0 {
		return "", false
	}
	value, ok := labels[strings.Join(rest, ".")]
	return value, ok
}

// Filter selects objects. It is safe for concurrent use.
type Filter interface{ Match(Adaptor) bool }

// ParseAll parses filters of which any may match; none matches everything.
// errdefs.ErrInvalidArgument, with the place, when one is malformed.
func ParseAll(filters ...string) (Filter, error) {
	alternatives := make(anyOf, 0, len(filters))
	everything := len(filters) == 0
	for _, text := range filters {
		if text == "" {
			everything = true
			continue
		}
		selectors, err := parse(text)
		if err != nil {
			return nil, err
		}
		alternatives = append(alternatives, selectors)
	}
	if everything {
		return always{}, nil
	}
	return alternatives, nil
}

type always struct{}

func (always) Match(Adaptor) bool { return true }

type anyOf []allOf

func (fs anyOf) Match(a Adaptor) bool {
	for _, f := range fs {
		if f.Match(a) {
			return true
		}
	}
	return false
}

type allOf []selector

func (ss allOf) Match(a Adaptor) bool {
	for _, s := range ss {
		if !s.match(a) {
			return false
		}
	}
	return true
}

type operator uint8

const (
	present operator = iota
	equal
	notEqual
	matches
)

type selector struct {
	path  []string
	op    operator
	value string
	re    *regexp.Regexp // of value, for matches
}

func (s selector) match(a Adaptor) bool {
	value, ok := a.Field(s.path)
	switch s.op {
	case equal:
		return ok && value == s.value
	case notEqual:
		return value != s.value
	case matches:
		return s.re.MatchString(value)
	default:
		return ok
	}
}
