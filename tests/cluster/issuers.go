package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"gopkg.in/go-jose/go-jose.v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiserver "k8s.io/apiserver/pkg/apis/apiserver/v1beta1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// issuer is an identity provider that the apiserver trusts, and one user of it.
type issuer struct {
	URL  string `json:"url"`
	User string `json:"user"`
	// Token is of that user, who is in the group that may view the namespace.
	Token string `json:"token"`

	key *ecdsa.PrivateKey
}

// issuers are two identity providers on one port, each with a key of its own.
type issuers struct {
	all    []*issuer
	server *http.Server
	// config is the file that tells the apiserver about them.
	config string
}

// issuerAudience is the client of the identity providers: kubectl, as it were.
const issuerAudience = "cluster-suite"

// startIssuers serves the discovery document and the keys of two identity
// providers, and writes a file for --authentication-config.
func startIssuers(dir string, ca *authority) (*issuers, error) {
	serving, err := ca.issue(dir, "issuers", pkix.Name{CommonName: "issuers"}, "127.0.0.1")
	if err != nil {
		return nil, err
	}
	certificate, err := tls.X509KeyPair(serving.certPEM, serving.keyPEM)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	i := &issuers{
		server: &http.Server{Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}}},
		config: filepath.Join(dir, "authentication.json"),
	}
	// This version exists since Kubernetes 1.30. See KUBEBUILDER_ASSETS.
	config := apiserver.AuthenticationConfiguration{TypeMeta: metav1.TypeMeta{
		APIVersion: apiserver.ConfigSchemeGroupVersion.String(), Kind: "AuthenticationConfiguration",
	}}
	for _, user := range []string{"ana", "otto"} {
		url := fmt.Sprintf("https://%s/of-%s", listener.Addr(), user)
		one, err := newIssuer(url, user)
		if err != nil {
			return nil, err
		}
		if err := one.serve(mux); err != nil {
			return nil, err
		}
		i.all = append(i.all, one)
		noPrefix := ""
		config.JWT = append(config.JWT, apiserver.JWTAuthenticator{
			Issuer: apiserver.Issuer{URL: url, Audiences: []string{issuerAudience}, CertificateAuthority: string(ca.pem)},
			ClaimMappings: apiserver.ClaimMappings{
				Username: apiserver.PrefixedClaimOrExpression{Claim: "sub", Prefix: &noPrefix},
				Groups:   apiserver.PrefixedClaimOrExpression{Claim: "groups", Prefix: &noPrefix},
			},
		})
	}
	content, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(i.config, content, 0o644); err != nil {
		return nil, err
	}
	go i.server.ServeTLS(listener, "", "")
	return i, nil
}

func newIssuer(url, user string) (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	signing := jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: user}}
	signer, err := jose.NewSigner(signing, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	claims, err := json.Marshal(map[string]any{
		"iss": url, "sub": user, "aud": issuerAudience, "groups": []string{impersonatedGroup},
		"iat": now.Unix(), "exp": now.Add(12 * time.Hour).Unix(),
	})
	if err != nil {
		return nil, err
	}
	signed, err := signer.Sign(claims)
	if err != nil {
		return nil, err
	}
	token, err := signed.CompactSerialize()
	return &issuer{URL: url, User: user, Token: token, key: key}, err
}

// serve adds the discovery document and the keys.
func (i *issuer) serve(mux *http.ServeMux) error {
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{
		Key: i.key.Public(), KeyID: i.User, Algorithm: string(jose.ES256), Use: "sig",
	}}})
	if err != nil {
		return err
	}
	discovery, err := json.Marshal(map[string]any{
		"issuer": i.URL, "jwks_uri": i.URL + "/keys", "authorization_endpoint": i.URL + "/login",
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{string(jose.ES256)},
	})
	if err != nil {
		return err
	}
	path := "GET /of-" + i.User
	mux.HandleFunc(path+"/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		respondJSON(w, string(discovery))
	})
	mux.HandleFunc(path+"/keys", func(w http.ResponseWriter, _ *http.Request) { respondJSON(w, string(keys)) })
	return nil
}

// waitUntilTrusted waits until this apiserver accepts the tokens. It is ready
// before it has fetched the keys, and tries again only after seconds.
func (i *issuers) waitUntilTrusted(ctx context.Context, apiserver *rest.Config) error {
	for _, one := range i.all {
		config := rest.AnonymousClientConfig(apiserver)
		config.BearerToken = one.Token
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return err
		}
		if err := waitUntilServed(ctx, client, "/version"); err != nil {
			return errors.Join(fmt.Errorf("the apiserver does not trust %s", one.URL), err)
		}
	}
	return nil
}

func (i *issuers) close() {
	i.server.Close()
}
