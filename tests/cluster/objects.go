package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	nodeName  = "node-1"
	namespace = "suite"

	// shellPod is for exec, attach, cp and port-forward. Its log has a fixed text.
	shellPod = "shell"
	// chattyPod writes a line with the time every 100 ms while a client follows its log.
	chattyPod = "chatty"
	// quietPod writes two lines with a pause of 25 s between them.
	quietPod = "quiet"

	impersonatedUser = "bob"
	// certificateGroup has the user with a client certificate.
	certificateGroup  = "certificate-users"
	impersonatedGroup = "viewers"

	metricsServiceName = "metrics." + namespace + ".svc"
	aggregatedPath     = "/apis/metrics.k8s.io/v1beta1/nodes"
)

var podNames = []string{shellPod, chattyPod, quietPod}

func createNode(ctx context.Context, client kubernetes.Interface, kubeletPort int) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}
	node, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	node.Status = corev1.NodeStatus{
		Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(kubeletPort)}},
		Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
			LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
		}},
	}
	_, err = client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
	return err
}

func createPods(ctx context.Context, client kubernetes.Interface) error {
	meta := metav1.ObjectMeta{Name: namespace}
	if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: meta}, metav1.CreateOptions{}); err != nil {
		return err
	}
	// Every pod needs this account, and no controller runs here that would create it.
	if err := createAccount(ctx, client, "default"); err != nil {
		return err
	}
	for _, name := range podNames {
		if err := createPod(ctx, client, name); err != nil {
			return err
		}
	}
	return nil
}

// createPod creates a pod and sets its status to running, as its kubelet would.
func createPod(ctx context.Context, client kubernetes.Interface, name string) error {
	mount := false
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			NodeName:                     nodeName,
			AutomountServiceAccountToken: &mount,
			Containers: []corev1.Container{{
				Name: "main", Image: "example.invalid/" + name, Stdin: true, StdinOnce: false,
			}},
		},
	}
	pod, err := client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	now := metav1.Now()
	started := true
	pod.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, HostIP: "127.0.0.1", StartTime: &now,
		// An address of the documentation range. Nothing connects to it.
		PodIP: "192.0.2.1", PodIPs: []corev1.PodIP{{IP: "192.0.2.1"}},
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: "main", Image: "example.invalid/" + name, Ready: true, Started: &started,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		}},
	}
	for _, kind := range []corev1.PodConditionType{
		corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady,
	} {
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{
			Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now,
		})
	}
	_, err = client.CoreV1().Pods(namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	return err
}

func createAccount(ctx context.Context, client kubernetes.Interface, name string) error {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err := client.CoreV1().ServiceAccounts(namespace).Create(ctx, account, metav1.CreateOptions{})
	return err
}

// createAccounts creates the administrator's account, and allows the impersonated
// user and group to view the namespace. It returns the administrator's token.
func createAccounts(ctx context.Context, client kubernetes.Interface) (string, error) {
	const admin = "admin"
	if err := createAccount(ctx, client, admin); err != nil {
		return "", err
	}
	_, err := client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "fixture-admin"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{
			{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: admin},
			{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: certificateGroup},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	// The ClusterRole `view` is empty here, because a controller would fill it.
	const viewer = "viewer"
	_, err = client.RbacV1().Roles(namespace).Create(ctx, &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: viewer},
		Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list", "watch"},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	_, err = client.RbacV1().RoleBindings(namespace).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: viewer},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: viewer},
		Subjects: []rbacv1.Subject{
			{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: impersonatedUser},
			{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: impersonatedGroup},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	lifetime := int64(12 * 60 * 60)
	request, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, admin, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &lifetime},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return request.Status.Token, nil
}

// createAggregatedAPI registers the server on `port` for the group metrics.k8s.io.
//
// The service is an ExternalName, because an apiserver rejects endpoints with a
// loopback address, and no cluster network exists for any other address.
func createAggregatedAPI(ctx context.Context, client kubernetes.Interface, port int, ca []byte) error {
	_, err := client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "metrics"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	apiService := fmt.Sprintf(`{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
		"metadata": {"name": "v1beta1.metrics.k8s.io"},
		"spec": {
			"group": "metrics.k8s.io", "version": "v1beta1",
			"groupPriorityMinimum": 100, "versionPriority": 100,
			"caBundle": %q,
			"service": {"namespace": %q, "name": "metrics", "port": %d}
		}
	}`, base64.StdEncoding.EncodeToString(ca), namespace, port)
	err = client.CoreV1().RESTClient().Post().
		AbsPath("/apis/apiregistration.k8s.io/v1/apiservices").
		SetHeader("Content-Type", "application/json").
		Body([]byte(apiService)).Do(ctx).Error()
	if err != nil {
		return err
	}
	return waitUntilServed(ctx, client, aggregatedPath)
}

func writeKubeconfig(file, server, caFile, token string) error {
	const name = "fixture"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthority: caFile}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name, Namespace: namespace}
	config.CurrentContext = name
	content, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	return os.WriteFile(file, content, 0o600)
}
