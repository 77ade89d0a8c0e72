package upstream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// An authority issues certificates.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // with its certificate
}

func newAuthority(t testing.TB, name string) *authority {
	a := &authority{t: t}
	a.cert, a.key = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	a.file = a.write("CERTIFICATE", a.cert.Raw)
	return a
}

// sign issues a certificate, by itself if there is nobody yet.
func (a *authority) sign(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(time.Hour)
	}
	c.NotBefore = c.NotAfter.Add(-2 * time.Hour)
	parent, by := c, key
	if a.cert != nil {
		parent, by = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a *authority) write(kind string, der []byte) string {
	a.t.Helper()
	name := filepath.Join(a.t.TempDir(), strings.ToLower(strings.ReplaceAll(kind, " ", "-"))+".pem")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return name
}

// issue writes a certificate and its key to files.
func (a *authority) issue(c *x509.Certificate) (cert, key string) {
	a.t.Helper()
	signed, private := a.sign(c)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.write("CERTIFICATE", signed.Raw), a.write("PRIVATE KEY", der)
}

// serveTLS starts a server that shows the certificate.
func serveTLS(t testing.TB, certFile, keyFile string, config *tls.Config) (url string) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	config.Certificates = []tls.Certificate{pair}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		who := "nobody"
		if len(r.TLS.PeerCertificates) > 0 {
			who = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		io.WriteString(w, `{"who":"`+who+`"}`)
	}))
	s.Config.ErrorLog = log.New(t.Output(), "", 0)
	s.TLS = config
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

// An upstream is trusted for its certificate alone, and is shown ours if there is one.
func TestTLS(t *testing.T) {
	ours, others := newAuthority(t, "ours"), newAuthority(t, "others")
	loopback := []net.IP{net.IPv4(127, 0, 0, 1)}
	good, goodKey := ours.issue(&x509.Certificate{IPAddresses: loopback, DNSNames: []string{"gpu.internal"}})
	old, oldKey := ours.issue(&x509.Certificate{IPAddresses: loopback, NotAfter: time.Now().Add(-time.Minute)})
	elsewhere, elsewhereKey := ours.issue(&x509.Certificate{DNSNames: []string{"gpu.internal"}})
	client, clientKey := ours.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "offpeak"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	stranger, strangerKey := others.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "stranger"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})

	clients := x509.NewCertPool()
	clients.AddCert(ours.cert)
	open := serveTLS(t, good, goodKey, &tls.Config{})
	strict := serveTLS(t, good, goodKey, &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients})
	expired := serveTLS(t, old, oldKey, &tls.Config{})
	misnamed := serveTLS(t, elsewhere, elsewhereKey, &tls.Config{})

	for _, c := range []struct {
		name string
		url  string
		tls  TLS
		who  string // for whom we are taken; empty: refused
		err  string
	}{
		{"own authority", open, TLS{CA: ours.file}, "nobody", ""},
		{"the system's authorities", open, TLS{}, "", "certificate signed by unknown authority"},
		{"another authority", open, TLS{CA: others.file}, "", "certificate signed by unknown authority"},
		{"expired", expired, TLS{CA: ours.file}, "", "certificate has expired"},
		{"wrong name", misnamed, TLS{CA: ours.file}, "", "127.0.0.1"},
		{"the name it has", misnamed, TLS{CA: ours.file, ServerName: "gpu.internal"}, "nobody", ""},
		{"a name it has not", open, TLS{CA: ours.file, ServerName: "gpu.external"}, "", "not gpu.external"},
		{"no questions asked", expired, TLS{InsecureSkipVerify: true}, "nobody", ""},
		{"client certificate", strict, TLS{CA: ours.file, Cert: client, Key: clientKey}, "offpeak", ""},
		{"no client certificate", strict, TLS{CA: ours.file}, "", "certificate required"},
		{"client certificate of others", strict, TLS{CA: ours.file, Cert: stranger, Key: strangerKey}, "", "tls: "},
		{"client certificate that nobody asks for", open, TLS{CA: ours.file, Cert: client, Key: clientKey}, "nobody", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := newUpstream(t, c.url, func(cfg *Config) { cfg.TLS = c.tls })
			a := u.NewCaller().Call(t.Context(), chat, []byte(`{}`))
			if c.who != "" {
				want{class: OK, status: 200}.check(t, a)
				if got, want := string(a.Body), `{"who":"`+c.who+`"}`; got != want {
					t.Errorf("got %s, want %s", got, want)
				}
				return
			}
			// TLS 1.3 tells of a client's certificate after the connection is made, when the request may
			// be on its way.
			if a.Class != Refused && !(a.Class == Transient && a.Cut && strings.Contains(c.name, "client")) {
				t.Errorf("class %s, want refused", a.Class)
			}
			if a.Err == nil || !strings.Contains(a.Err.Error(), c.err) {
				t.Errorf("error %v, want %s", a.Err, c.err)
			}
		})
	}
}

func TestTLSErrors(t *testing.T) {
	ours := newAuthority(t, "ours")
	cert, key := ours.issue(&x509.Certificate{})
	_, otherKey := ours.issue(&x509.Certificate{})
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		url  string
		tls  TLS
		want string
	}{
		{"https://host", TLS{CA: "/none/ca.pem"}, "upstream gpu: tls: ca: open /none/ca.pem: no such file"},
		{"https://host", TLS{CA: text}, "upstream gpu: tls: ca: there is no certificate in " + text},
		{"https://host", TLS{Cert: cert}, "upstream gpu: tls: cert and key go together"},
		{"https://host", TLS{Key: key}, "upstream gpu: tls: cert and key go together"},
		{"https://host", TLS{Cert: cert, Key: "/none/key.pem"}, "upstream gpu: tls: key: open /none/key.pem"},
		{"https://host", TLS{Cert: "/none/cert.pem", Key: key}, "upstream gpu: tls: cert: open /none/cert.pem"},
		{"https://host", TLS{Cert: cert, Key: otherKey}, "private key does not match public key"},
		{"https://host", TLS{Cert: text, Key: key}, "upstream gpu: tls: cert " + text},
		{"http://host", TLS{ServerName: "x"}, "upstream gpu: it has settings for tls, but its url begins with http://"},
	} {
		if _, err := New(Config{Name: "gpu", URL: c.url, TLS: c.tls}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %+v: got %v, want %s", c.url, c.tls, err, c.want)
		}
	}
}
