package challenge_test

import (
	"testing"

	"berth/internal/registry/challenge"
)

func TestParse(t *testing.T) {
	got := challenge.Parse([]string{`Bearer realm="https://a.example/t?x=1,2",service="s \"q\"", scope="repository:a:pull,push"`, `Basic realm=x, Negotiate`})
	if len(got) != 3 || got[0].Scheme != "bearer" || got[1].Scheme != "basic" || got[2].Scheme != "negotiate" {
		t.Fatalf("%+v", got)
	}
	p := got[0].Params
	if p["realm"] != "https://a.example/t?x=1,2" || p["service"] != `s "q"` || p["scope"] != "repository:a:pull,push" || got[1].Params["realm"] != "x" {
		t.Errorf("%+v", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`Bearer realm="https://a.example/t",service="s",scope="repository:a:pull"`)
	f.Add(`Basic realm="a\"b" , Bearer a=b`)
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range challenge.Parse([]string{s}) {
			if c.Scheme == "" || c.Params == nil {
				t.Errorf("%+v", c)
			}
		}
	})
}
