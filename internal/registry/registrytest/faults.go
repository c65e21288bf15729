package registrytest

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"time"
)

type action = func(w http.ResponseWriter, r *http.Request, next http.Handler)

// Status answers with an error status; header is "Key: value" pairs in turn.
func Status(code int, header ...string) action {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		Error(w, code, "TEST", "the registry misbehaves")
	}
}

// Hang never answers; it ends with the request or the registry.
func (r *Registry) Hang() action {
	return func(w http.ResponseWriter, q *http.Request, _ http.Handler) {
		select {
		case <-q.Context().Done():
		case <-r.quit:
		}
	}
}

// HangAfter sends the first n bytes of a right answer and then nothing more.
func (r *Registry) HangAfter(n int) action {
	return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		rec := record(q, next)
		copyHeader(w, rec)
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes()[:min(n, rec.Body.Len())])
		w.(http.Flusher).Flush()
		r.Hang()(w, q, next)
	}
}

// Cut closes the connection after n bytes of the body of a right answer; with
// 0 it is reset before there is any answer.
func Cut(n int) action {
	return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if n > 0 {
			rec := record(q, next)
			copyHeader(w, rec)
			w.WriteHeader(rec.Code)
			w.Write(rec.Body.Bytes()[:min(n, rec.Body.Len())])
			w.(http.Flusher).Flush()
		}
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			if tcp, ok := conn.(*net.TCPConn); ok && n == 0 {
				tcp.SetLinger(0)
			}
			conn.Close()
		}
	}
}

// Short sends an answer that is whole by its own account, but n bytes long.
func Short(n int) action {
	return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		rec := record(q, next)
		copyHeader(w, rec)
		w.Header().Set("Content-Length", strconv.Itoa(n))
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes()[:n])
	}
}

// Corrupt changes the byte at an offset of the answer.
func Corrupt(at int) action {
	return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		rec := record(q, next)
		b := append([]byte(nil), rec.Body.Bytes()...)
		if at < len(b) {
			b[at] ^= 0xff
		}
		copyHeader(w, rec)
		w.WriteHeader(rec.Code)
		w.Write(b)
	}
}

// NoRange answers as if no range had been asked for.
func NoRange(w http.ResponseWriter, q *http.Request, next http.Handler) {
	q = q.Clone(q.Context())
	q.Header.Del("Range")
	next.ServeHTTP(w, q)
}

// Header answers rightly but with a header changed, or removed when it is empty.
func Header(key, value string) action {
	return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		rec := record(q, next)
		copyHeader(w, rec)
		if w.Header().Del(key); value != "" {
			w.Header().Set(key, value)
		}
		w.WriteHeader(rec.Code)
		if q.Method != http.MethodHead {
			w.Write(rec.Body.Bytes())
		}
	}
}

// Drip sends an answer in pieces of n bytes with pauses in between.
func Drip(n int, pause time.Duration) action {
	return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		rec := record(q, next)
		copyHeader(w, rec)
		w.WriteHeader(rec.Code)
		t := time.NewTicker(pause)
		defer t.Stop()
		for b := rec.Body.Bytes(); len(b) > 0; {
			k := min(n, len(b))
			w.Write(b[:k])
			w.(http.Flusher).Flush()
			b = b[k:]
			select {
			case <-t.C:
			case <-q.Context().Done():
				return
			}
		}
	}
}

// Redirect sends the client to the same path, with a secret query, at another base URL.
func Redirect(base string) action {
	return func(w http.ResponseWriter, q *http.Request, _ http.Handler) {
		http.Redirect(w, q, base+q.URL.Path+"?signature=secret", http.StatusTemporaryRedirect)
	}
}

func record(q *http.Request, next http.Handler) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, q)
	return rec
}

func copyHeader(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
}
