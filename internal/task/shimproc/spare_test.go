package shimproc

import "testing"

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte(`{"pid":1,"version":3}`))
	f.Add([]byte(`{"error":"no"}`))
	f.Fuzz(func(t *testing.T, b []byte) { parseAnswer(b) })
}
