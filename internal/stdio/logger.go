package stdio

import (
	"context"
	"net/url"
	"os"
	"strings"
)

func loggerURI(stdout string) (*url.URL, bool) {
	if !strings.HasPrefix(stdout, "binary://") {
		return nil, false
	}
	u, err := url.Parse(stdout)
	return u, err == nil
}

func (s *Streams) startLogger(ctx context.Context, uri *url.URL, opts Options) error { return nil }
func (s *Streams) attachLogger(ctx context.Context, uri *url.URL, console *os.File, opts Options) error {
	return nil
}
