// Package otlp sends spans to an OpenTelemetry collector, by HTTP or gRPC, as the
// standard environment variables say (OTEL_*, the only configuration that
// containerd has for it). The messages are encoded here: OpenTelemetry's own
// exporters bring an SDK, a JSON gateway and their start-up along.
//
// Spans wait in a bounded queue and are sent in batches. Who makes them never
// waits: what does not fit is dropped and counted. With nothing to send nothing
// runs.
package otlp

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/internal/trace"

	"github.com/containerd/errdefs"
)

// Settings are where spans go, and which.
type Settings struct {
	grpc     bool
	endpoint *url.URL
	headers  map[string]string
	tls      *tls.Config
	gzip     bool
	resource []trace.Attr
	sample   func(trace.Identity, [16]byte) bool

	queue, batch   int
	delay, timeout time.Duration
}

// FromEnv reads the OTEL_* variables; nil when nobody asks for traces.
// errdefs.ErrInvalidArgument when a variable cannot be understood,
// errdefs.ErrNotImplemented for a protocol that is not spoken.
func FromEnv(get func(string) string, version string) (*Settings, error) {
	disabled, err := boolean(get, "OTEL_SDK_DISABLED")
	if err != nil {
		return nil, err
	}
	endpoint, path := get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), ""
	if endpoint == "" {
		endpoint, path = get("OTEL_EXPORTER_OTLP_ENDPOINT"), "/v1/traces"
	}
	if disabled || endpoint == "" {
		return nil, nil
	}
	if v := get("OTEL_TRACES_EXPORTER"); v == "none" {
		return nil, nil
	} else if v != "" && v != "otlp" {
		return nil, fmt.Errorf("OTEL_TRACES_EXPORTER: unsupported traces exporter %q, there is only otlp: %w", v, errdefs.ErrInvalidArgument)
	}
	s := &Settings{}
	either := func(name string) string {
		if v := get("OTEL_EXPORTER_OTLP_TRACES_" + name); v != "" {
			return v
		}
		return get("OTEL_EXPORTER_OTLP_" + name)
	}
	switch v := either("PROTOCOL"); v {
	case "", "http/protobuf":
	case "grpc":
		s.grpc = true
	default:
		return nil, fmt.Errorf("OpenTelemetry protocol %q, there are http/protobuf and grpc: %w", v, errdefs.ErrNotImplemented)
	}
	if s.endpoint, err = parseEndpoint(endpoint, path, s.grpc, either("INSECURE")); err != nil {
		return nil, err
	}
	switch v := either("COMPRESSION"); v {
	case "", "none":
	case "gzip":
		s.gzip = true
	default:
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_COMPRESSION %q, there are gzip and none: %w", v, errdefs.ErrInvalidArgument)
	}
	if s.headers, err = pairs("OTEL_EXPORTER_OTLP_HEADERS", either("HEADERS")); err != nil {
		return nil, err
	}
	if s.tls, err = tlsConfig(either("CERTIFICATE"), either("CLIENT_CERTIFICATE"), either("CLIENT_KEY")); err != nil {
		return nil, err
	}
	if s.resource, err = resource(get, version); err != nil {
		return nil, err
	}
	if s.sample, err = sampler(get("OTEL_TRACES_SAMPLER"), get("OTEL_TRACES_SAMPLER_ARG")); err != nil {
		return nil, err
	}
	return s, s.numbers(get, either)
}

func (s *Settings) numbers(get, either func(string) string) error {
	var delay, timeout int
	for _, n := range []struct {
		name, value string
		to          *int
		fallback    int
	}{
		{"OTEL_BSP_SCHEDULE_DELAY", get("OTEL_BSP_SCHEDULE_DELAY"), &delay, 5000},
		{"OTEL_BSP_MAX_QUEUE_SIZE", get("OTEL_BSP_MAX_QUEUE_SIZE"), &s.queue, 2048},
		{"OTEL_BSP_MAX_EXPORT_BATCH_SIZE", get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE"), &s.batch, 512},
		{"OTEL_EXPORTER_OTLP_TIMEOUT", either("TIMEOUT"), &timeout, 10000},
	} {
		*n.to = n.fallback
		if n.value == "" {
			continue
		}
		v, err := strconv.Atoi(n.value)
		if err != nil || v <= 0 {
			return fmt.Errorf("%s=%s is no positive number: %w", n.name, n.value, errdefs.ErrInvalidArgument)
		}
		*n.to = v
	}
	s.batch = min(s.batch, s.queue)
	s.delay, s.timeout = time.Duration(delay)*time.Millisecond, time.Duration(timeout)*time.Millisecond
	return nil
}

func boolean(get func(string) string, name string) (bool, error) {
	v := get(name)
	if v == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("invalid value for %s: %q is neither true nor false: %w", name, v, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

func parseEndpoint(endpoint, path string, grpc bool, insecure string) (*url.URL, error) {
	if !strings.Contains(endpoint, "://") {
		scheme := "https://"
		if insecure == "true" {
			scheme = "http://"
		}
		endpoint = scheme + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT %q is no URL such as http://localhost:4318: %w", endpoint, errdefs.ErrInvalidArgument)
	}
	if !grpc {
		u.Path = strings.TrimSuffix(u.Path, "/") + path
	}
	return u, nil
}

// pairs reads "key=value,key=value", values percent-encoded.
func pairs(name, list string) (map[string]string, error) {
	out := map[string]string{}
	for pair := range strings.SplitSeq(list, ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		decoded, err := url.PathUnescape(strings.TrimSpace(value))
		if !ok || err != nil || strings.TrimSpace(key) == "" {
			return nil, fmt.Errorf("%s has an entry that is not key=value: %w", name, errdefs.ErrInvalidArgument)
		}
		out[strings.TrimSpace(key)] = decoded
	}
	return out, nil
}

func tlsConfig(ca, cert, key string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_CERTIFICATE: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_CERTIFICATE: %s has no certificates: %w", ca, errdefs.ErrInvalidArgument)
		}
	}
	if cert != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func resource(get func(string) string, version string) ([]trace.Attr, error) {
	attrs, err := pairs("OTEL_RESOURCE_ATTRIBUTES", get("OTEL_RESOURCE_ATTRIBUTES"))
	if err != nil {
		return nil, err
	}
	if name := get("OTEL_SERVICE_NAME"); name != "" {
		attrs["service.name"] = name
	}
	for key, value := range map[string]string{"service.name": "containerd", "service.version": version, "telemetry.sdk.language": "go", "telemetry.sdk.name": "berth"} {
		if _, ok := attrs[key]; !ok {
			attrs[key] = value
		}
	}
	var out []trace.Attr
	for _, key := range slices.Sorted(maps.Keys(attrs)) {
		out = append(out, trace.String(key, attrs[key]))
	}
	return out, nil
}

// sampler is the decision that OTEL_TRACES_SAMPLER names.
func sampler(name, arg string) (func(trace.Identity, [16]byte) bool, error) {
	name, followParent := strings.CutPrefix(name, "parentbased_")
	var root func([16]byte) bool
	switch name {
	case "":
		followParent, root = true, func([16]byte) bool { return true }
	case "always_on":
		root = func([16]byte) bool { return true }
	case "always_off":
		root = func([16]byte) bool { return false }
	case "traceidratio":
		ratio := 1.0
		if arg != "" {
			var err error
			if ratio, err = strconv.ParseFloat(arg, 64); err != nil || !(ratio >= 0 && ratio <= 1) {
				return nil, fmt.Errorf("OTEL_TRACES_SAMPLER_ARG=%s is not between 0 and 1: %w", arg, errdefs.ErrInvalidArgument)
			}
		}
		bound := uint64(ratio * math.MaxInt64)
		root = func(id [16]byte) bool { return ratio == 1 || binary.BigEndian.Uint64(id[8:])>>1 < bound }
	default:
		return nil, fmt.Errorf("OTEL_TRACES_SAMPLER=%s is none of always_on, always_off, traceidratio, and these after parentbased_: %w", name, errdefs.ErrInvalidArgument)
	}
	return func(parent trace.Identity, id [16]byte) bool {
		if followParent && parent.Valid() {
			return parent.Sampled
		}
		return root(id)
	}, nil
}
