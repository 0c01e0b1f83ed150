package main

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// fillWorkers is the number of concurrent requests that create an object.
const fillWorkers = 8

// fill creates a namespace with many ConfigMaps. It is much faster than kubectl,
// which limits its own rate. It prints {"resourceVersion": …}: at that version
// the list is complete and never changes.
func fill(args []string) error {
	flags := flag.NewFlagSet("fill", flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "the kubeconfig to use")
	into := flags.String("into", "many", "namespace to create")
	count := flags.Int("count", 2000, "how many ConfigMaps to create")
	size := flags.Int("bytes", 1024, "size of the data of each ConfigMap")
	if err := flags.Parse(args); err != nil {
		return err
	}
	client, err := clientFor(*kubeconfig)
	if err != nil {
		return err
	}
	ctx := context.Background()
	meta := metav1.ObjectMeta{Name: *into}
	if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: meta}, metav1.CreateOptions{}); err != nil {
		return err
	}
	numbers := make(chan int)
	failures := make(chan error, fillWorkers)
	var workers sync.WaitGroup
	for range fillWorkers {
		workers.Go(func() {
			var failure error
			// After a failure the worker reads and discards the remaining
			// numbers, so that the sender below never blocks.
			for n := range numbers {
				if failure != nil {
					continue
				}
				text := fmt.Sprintf("%d;", n)
				_, failure = client.CoreV1().ConfigMaps(*into).Create(ctx, &corev1.ConfigMap{
					ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("item-%05d", n)},
					Data:       map[string]string{"text": strings.Repeat(text, *size/len(text))},
				}, metav1.CreateOptions{})
			}
			if failure != nil {
				failures <- failure
			}
		})
	}
	for n := range *count {
		numbers <- n
	}
	close(numbers)
	workers.Wait()
	select {
	case failure := <-failures:
		return failure
	default:
	}
	list, err := client.CoreV1().ConfigMaps(*into).List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	return printJSON(map[string]string{"resourceVersion": list.ResourceVersion})
}

// clientFor returns a client without a rate limit.
func clientFor(kubeconfig string) (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	return kubernetes.NewForConfig(config)
}
