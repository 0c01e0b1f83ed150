package main

import (
	"crypto/x509/pkix"
	"fmt"
	"os"
	"path/filepath"
)

// auditPolicy records every request once, when it ends or starts to stream.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

func etcdArgs(dir string, port *reservedPort) []string {
	url := "http://" + port.address()
	// No other member joins, so the peer address does not matter.
	const peerURL = "http://127.0.0.1:0"
	return []string{
		"--name=default",
		"--data-dir=" + filepath.Join(dir, "etcd"),
		"--listen-client-urls=" + url,
		"--advertise-client-urls=" + url,
		"--listen-peer-urls=" + peerURL,
		"--initial-advertise-peer-urls=" + peerURL,
		"--initial-cluster=default=" + peerURL,
		"--socket-reuse-port",
		// The data does not have to survive a crash of the machine.
		"--unsafe-no-fsync",
		"--log-level=warn",
	}
}

// frontProxyFiles is the name of the files with the front-proxy certificate and key.
const frontProxyFiles = "front-proxy"

// apiserverArgs writes the files that kube-apiserver needs and returns its flags.
// All other settings keep their defaults, above all the feature gates, the limits
// of HTTP/2, and anonymous authentication.
func apiserverArgs(dir string, ca *authority, caFile, authenticationConfig string, port, etcd *reservedPort) ([]string, error) {
	serving, err := ca.issue(dir, "apiserver", pkix.Name{CommonName: "kube-apiserver"},
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1")
	if err != nil {
		return nil, err
	}
	// This needs a separate CA: the holder of a certificate of this CA may impersonate any user.
	frontProxyCA, err := newAuthority("front-proxy-ca")
	if err != nil {
		return nil, err
	}
	frontProxyCAFile := filepath.Join(dir, "front-proxy-ca.crt")
	if err := os.WriteFile(frontProxyCAFile, frontProxyCA.pem, 0o644); err != nil {
		return nil, err
	}
	frontProxy, err := frontProxyCA.issue(dir, frontProxyFiles, pkix.Name{CommonName: "front-proxy"})
	if err != nil {
		return nil, err
	}
	privateKey, publicKey := filepath.Join(dir, "accounts.key"), filepath.Join(dir, "accounts.pub")
	if err := writeSigningKey(privateKey, publicKey); err != nil {
		return nil, err
	}
	policy := filepath.Join(dir, "audit-policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o644); err != nil {
		return nil, err
	}
	return []string{
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", port.port),
		"--permit-port-sharing",
		// A loopback address is not a valid endpoint of the service `kubernetes`.
		"--endpoint-reconciler-type=none",
		"--etcd-servers=http://" + etcd.address(),
		"--service-cluster-ip-range=10.0.0.0/24",
		"--tls-cert-file=" + serving.certFile,
		"--tls-private-key-file=" + serving.keyFile,
		"--client-ca-file=" + caFile,
		"--kubelet-certificate-authority=" + caFile,
		"--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file=" + frontProxyCAFile,
		"--requestheader-allowed-names=front-proxy",
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-uid-headers=X-Remote-Uid",
		"--proxy-client-cert-file=" + frontProxy.certFile,
		"--proxy-client-key-file=" + frontProxy.keyFile,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + publicKey,
		"--service-account-signing-key-file=" + privateKey,
		"--authentication-config=" + authenticationConfig,
		"--authorization-mode=RBAC",
		"--audit-log-path=" + filepath.Join(dir, "audit.log"),
		"--audit-policy-file=" + policy,
	}, nil
}
