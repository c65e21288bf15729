package image

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Name is an image name, "[domain[:port]/]path[:tag][@digest]", in the grammar
// of github.com/distribution/reference. It is parsed by hand: that package
// compiles its expressions whenever a program starts, used or not.
type Name struct {
	Domain string // with its port; may be empty
	Path   string
	Tag    string
	Digest digest.Digest
}

// Bounds and defaults of names.
const (
	maxNamePath   = 255
	maxTag        = 128
	dockerDomain  = "docker.io"
	dockerLibrary = "library/"
)

// ParseName parses a name as it is written. errdefs.ErrInvalidArgument.
func ParseName(s string) (Name, error) {
	n, err := parseName(s)
	if err != nil {
		return Name{}, fmt.Errorf("image name %.512q: %w: %w", s, err, errdefs.ErrInvalidArgument)
	}
	return n, nil
}

func parseName(s string) (n Name, err error) {
	rest, dgst, digested := strings.Cut(s, "@")
	if digested {
		if n.Digest, err = digest.Parse(dgst); err != nil {
			return n, err
		}
	}
	tagged := false
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		rest, n.Tag, tagged = rest[:i], rest[i+1:], true
	}
	n.Path = rest
	if first, path, ok := strings.Cut(rest, "/"); ok && isDomain(first) {
		n.Domain, n.Path = first, path
	}
	switch {
	case tagged && !isTag(n.Tag):
		return n, fmt.Errorf("%.160q is no tag", n.Tag)
	case n.Path == "":
		return n, errors.New("it names no repository")
	case isNamePath(n.Path):
	case isNamePath(strings.ToLower(n.Path)):
		return n, errors.New("a repository is written in lower case")
	default:
		return n, fmt.Errorf("%.300q is no repository", n.Path)
	}
	if len(n.Path) > maxNamePath {
		return n, fmt.Errorf("a repository has at most %d characters", maxNamePath)
	}
	return n, nil
}

// ParseDockerName parses a name that may be short, as Docker takes it: "alpine"
// is docker.io/library/alpine. No tag is added. errdefs.ErrInvalidArgument.
func ParseDockerName(s string) (Name, error) {
	domain, path, ok := strings.Cut(s, "/")
	switch {
	case ok && (domain == "localhost" || strings.ContainsAny(domain, ".:") || domain != strings.ToLower(domain)):
		if domain == "index.docker.io" {
			domain = dockerDomain
		}
	default:
		domain, path = dockerDomain, s
	}
	if domain == dockerDomain && !strings.Contains(path, "/") {
		path = dockerLibrary + path
	}
	if len(s) == 64 && isAll(s, isHex) {
		return Name{}, fmt.Errorf("image name %q looks like an image ID: %w", s, errdefs.ErrInvalidArgument)
	}
	n, err := parseName(domain + "/" + path)
	if err == nil && n.Domain == "" {
		err = fmt.Errorf("%.300q is no registry", domain)
	}
	if err != nil {
		return Name{}, fmt.Errorf("image name %.512q: %w: %w", s, err, errdefs.ErrInvalidArgument)
	}
	return n, nil
}

// Tagged is the name with the tag "latest" if it has neither tag nor digest.
func (n Name) Tagged() Name {
	if n.Tag == "" && n.Digest == "" {
		n.Tag = "latest"
	}
	return n
}

func (n Name) String() string {
	s := n.Path
	if n.Domain != "" {
		s = n.Domain + "/" + s
	}
	if n.Tag != "" {
		s += ":" + n.Tag
	}
	if n.Digest != "" {
		s += "@" + n.Digest.String()
	}
	return s
}

// Familiar is the name as Docker shows it: without its defaults.
func (n Name) Familiar() string {
	if n.Domain == dockerDomain {
		n.Domain = ""
		if rest, ok := strings.CutPrefix(n.Path, dockerLibrary); ok && !strings.Contains(rest, "/") {
			n.Path = rest
		}
	}
	return n.String()
}

// RefName is the tag of an image name, or the name itself when it has none: what
// the index of an archive notes of an image (org.opencontainers.image.ref.name).
func RefName(name string) string {
	last := name[strings.LastIndexByte(name, '/')+1:]
	if tag, _, _ := strings.Cut(last, "@"); strings.Contains(tag, ":") {
		_, obj, _ := strings.Cut(last, ":")
		return obj
	}
	return name
}

func isTag(s string) bool {
	return s != "" && len(s) <= maxTag && isAll(s, func(c byte) bool { return isWord(c) || c == '_' || c == '.' || c == '-' }) && s[0] != '.' && s[0] != '-'
}

// isDomain tells whether s is a host name or a bracketed IPv6 address, with a
// port or without.
func isDomain(s string) bool {
	host := s
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		if i == len(s)-1 || !isAll(s[i+1:], isDigit) {
			return false
		}
		host = s[:i]
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		return ok && inner != "" && isAll(inner, func(c byte) bool { return isHex(c) || c >= 'A' && c <= 'F' || c == ':' })
	}
	for part := range strings.SplitSeq(host, ".") {
		if part == "" || part[0] == '-' || part[len(part)-1] == '-' || !isAll(part, func(c byte) bool { return isWord(c) || c == '-' }) {
			return false
		}
	}
	return true
}

// isNamePath tells whether s is parts between slashes.
func isNamePath(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if !isNamePart(part) {
			return false
		}
	}
	return true
}

// isNamePart tells whether s is lower-case words, joined by one dot, one or two
// underscores, or dashes.
func isNamePart(s string) bool {
	for {
		word := span(s, func(c byte) bool { return isDigit(c) || c >= 'a' && c <= 'z' })
		if word == 0 || word == len(s) {
			return word > 0
		}
		s = s[word:]
		joint := s[:span(s, func(c byte) bool { return c == s[0] })]
		if joint[0] != '-' && joint != "." && joint != "_" && joint != "__" {
			return false
		}
		s = s[len(joint):]
	}
}

// span counts the leading bytes that are so.
func span(s string, is func(byte) bool) int {
	for i := range len(s) {
		if !is(s[i]) {
			return i
		}
	}
	return len(s)
}

func isAll(s string, is func(byte) bool) bool { return span(s, is) == len(s) }

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
func isHex(c byte) bool   { return isDigit(c) || c >= 'a' && c <= 'f' }
func isWord(c byte) bool  { return isDigit(c) || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
