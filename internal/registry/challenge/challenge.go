// Package challenge reads the headers by which a server says how it wants to be
// asked (WWW-Authenticate; RFC 9110, 11.6.1). They are a server's word: what is
// malformed is left out, what is too long is not read.
package challenge

import "strings"

// Challenge is one of those that a header poses.
type Challenge struct {
	Scheme string            // in lower case
	Params map[string]string // by name, in lower case
}

// Parse reads WWW-Authenticate headers (RFC 9110, 11.6.1). What it
// does not understand it leaves out.
func Parse(headers []string) []Challenge {
	var out []Challenge
	for _, s := range headers {
		if len(s) > 8<<10 {
			continue
		}
		for s = strings.TrimLeft(s, " ,\t"); s != ""; s = strings.TrimLeft(s, " ,\t") {
			word, rest := token(s)
			if word == "" {
				break
			}
			if key := strings.TrimLeft(rest, " \t"); strings.HasPrefix(key, "=") && len(out) > 0 {
				var value string
				value, s = paramValue(strings.TrimLeft(key[1:], " \t"))
				out[len(out)-1].Params[strings.ToLower(word)] = value
				continue
			}
			out = append(out, Challenge{Scheme: strings.ToLower(word), Params: map[string]string{}})
			s = rest
		}
	}
	return out
}

func token(s string) (word, rest string) {
	i := strings.IndexFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
	if i < 0 {
		i = len(s)
	}
	return s[:i], s[i:]
}

func paramValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		return token(s)
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		case '"':
			return b.String(), s[i+1:]
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}
