package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// target is the server and the credentials of a client: the flags that all raw
// clients share.
type target struct {
	server, ca, token string
	// serverName is the name to verify, and to ask for in the SNI. It is the host
	// of the server when it is empty.
	serverName string
	// certificate and key are the files of a client certificate, or empty.
	certificate, key string
	// from is the local address to connect from, or empty.
	from    string
	headers headerFlag
	http1   bool
	timeout time.Duration
	// connections is the number of TCP connections that were opened.
	connections atomic.Int64
}

// flags declares the flags of the target in a new flag set.
func (t *target) flags(name string) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.StringVar(&t.server, "server", "", "base URL of the server")
	flags.StringVar(&t.ca, "ca", "", "file with the certificates to trust")
	flags.StringVar(&t.token, "token", "", "bearer token; none is sent when it is empty")
	flags.StringVar(&t.serverName, "server-name", "", "name of the server instead of its host")
	flags.StringVar(&t.certificate, "cert", "", "file with a client certificate")
	flags.StringVar(&t.key, "key", "", "file with the key of the client certificate")
	flags.StringVar(&t.from, "from", "", "local `address` to connect from")
	flags.Var(&t.headers, "header", "`name: value` to send; may be repeated")
	flags.BoolVar(&t.http1, "http1", false, "speak HTTP/1.1 instead of HTTP/2")
	return flags
}

// client returns an HTTP client with a separate connection pool.
func (t *target) client() (*http.Client, error) {
	pem, err := os.ReadFile(t.ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s contains no certificate", t.ca)
	}
	config := &tls.Config{RootCAs: roots, ServerName: t.serverName}
	if t.certificate != "" {
		identity, err := tls.LoadX509KeyPair(t.certificate, t.key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{identity}
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(t.http1)
	protocols.SetHTTP2(!t.http1)
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	if t.from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(t.from)}
	}
	transport := &http.Transport{
		TLSClientConfig: config,
		Protocols:       protocols,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			t.connections.Add(1)
			return dialer.DialContext(ctx, network, address)
		},
	}
	return &http.Client{Transport: transport, Timeout: t.timeout}, nil
}

func (t *target) request(ctx context.Context, path string) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, t.server+path, nil)
	if err != nil {
		return nil, err
	}
	if t.token != "" {
		request.Header.Set("Authorization", "Bearer "+t.token)
	}
	for _, header := range t.headers {
		name, value, _ := strings.Cut(header, ":")
		// Not with Add, which would change the spelling.
		request.Header[name] = append(request.Header[name], strings.TrimSpace(value))
	}
	return request, nil
}

type headerFlag []string

func (h *headerFlag) String() string { return strings.Join(*h, ", ") }

func (h *headerFlag) Set(value string) error {
	if !strings.Contains(value, ":") {
		return errors.New("the header is not of the form `name: value`")
	}
	*h = append(*h, value)
	return nil
}

// fetch sends one GET and prints the whole response, headers included. With
// -resume it sends another one before, and offers to resume its TLS session.
func fetch(args []string) error {
	t := target{timeout: 30 * time.Second}
	flags := t.flags("fetch")
	path := flags.String("path", "/version", "path and query")
	resume := flags.Bool("resume", false, "offer the TLS session of an earlier connection")
	if err := flags.Parse(args); err != nil {
		return err
	}
	client, err := t.client()
	if err != nil {
		return err
	}
	if *resume {
		transport := client.Transport.(*http.Transport)
		transport.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		first, err := t.request(context.Background(), *path)
		if err != nil {
			return err
		}
		newTally().try(client, first)
		transport.CloseIdleConnections()
	}
	request, err := t.request(context.Background(), *path)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	return printJSON(map[string]any{
		"status": response.StatusCode, "protocol": response.Proto,
		"headers": response.Header, "body": string(body), "resumed": response.TLS.DidResume,
		// The hash of the received bytes, for a body that is not text.
		"bytes": len(body), "sha256": fmt.Sprintf("%x", sha256.Sum256(body)),
	})
}

// untilInputEnds returns a context that ends when standard input ends. A test
// closes standard input to stop a client.
func untilInputEnds() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	return ctx, cancel
}
