package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"slices"

	"berth/internal/config"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/credentials"
)

// tlsCredentials are those of the TCP address, nil when it has no certificate.
// With authorities of clients a client must have a certificate of one of them,
// with a common name also that name.
//
// Differs from containerd: there a common name finds a certificate in the store
// of Windows and means nothing here.
func tlsCredentials(cfg config.GRPCTCP) (credentials.TransportCredentials, error) {
	if cfg.TLSCert == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	t := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if cfg.TLSCA == "" {
		if cfg.TLSName != "" {
			return nil, fmt.Errorf("tls_common_name %s: clients have no certificates without tls_ca: %w", cfg.TLSName, errdefs.ErrInvalidArgument)
		}
		return credentials.NewTLS(t), nil
	}
	pem, err := os.ReadFile(cfg.TLSCA)
	if err != nil {
		return nil, fmt.Errorf("TLS CA: %w", err)
	}
	t.ClientCAs = x509.NewCertPool()
	if !t.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("TLS CA %s has no certificates: %w", cfg.TLSCA, errdefs.ErrInvalidArgument)
	}
	t.ClientAuth = tls.RequireAndVerifyClientCert
	if name := cfg.TLSName; name != "" {
		// Here and not in VerifyPeerCertificate, which resumed sessions skip.
		t.VerifyConnection = func(s tls.ConnectionState) error {
			c := s.PeerCertificates[0]
			if c.Subject.CommonName == name || slices.Contains(c.DNSNames, name) {
				return nil
			}
			return fmt.Errorf("the client's certificate is for %q, not for %q", c.Subject.CommonName, name)
		}
	}
	return credentials.NewTLS(t), nil
}
