package main

import (
	"errors"
	"flag"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// reflectConfigMaps runs an informer, as controllers do, for the ConfigMaps with
// the label `reflected`. It prints {"synced":true} once and {"added":name} for each
// object. It ends when standard input ends.
func reflectConfigMaps(args []string) error {
	flags := flag.NewFlagSet("reflect", flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "the kubeconfig to use")
	if err := flags.Parse(args); err != nil {
		return err
	}
	client, err := clientFor(*kubeconfig)
	if err != nil {
		return err
	}
	ctx, cancel := untilInputEnds()
	defer cancel()
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(options *metav1.ListOptions) { options.LabelSelector = "reflected" }),
	)
	informer := factory.Core().V1().ConfigMaps().Informer()
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(object any) {
			if configMap, ok := object.(*corev1.ConfigMap); ok {
				_ = printJSON(map[string]string{"added": configMap.Name})
			}
		},
	})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return errors.New("standard input ended before the first list")
	}
	if err := printJSON(map[string]bool{"synced": true}); err != nil {
		return err
	}
	<-ctx.Done()
	factory.Shutdown()
	return nil
}
