// One node of OpenSearch from its jars, without the distribution around them: java -cp JARS SearchNode.java HOME REPOSITORY PORT
// Elasticsearch 7 is the same with the name of its packages.
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import org.opensearch.common.settings.Settings;
import org.opensearch.env.Environment;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.node.Node;
import org.opensearch.transport.Netty4Plugin;

public class SearchNode {
    static class WithNetwork extends Node {
        WithNetwork(Environment environment) {
            super(environment, List.of(Netty4Plugin.class), true);
        }
    }

    public static void main(String[] words) throws Exception {
        Settings settings = Settings.builder()
            .put("path.home", words[0])
            .put("path.repo", words[1])
            .put("http.port", words[2])
            .put("transport.port", Integer.parseInt(words[2]) + 1)
            .put("network.host", "127.0.0.1")
            .put("transport.type", "netty4")
            .put("http.type", "netty4")
            .put("discovery.type", "single-node")
            .put("cluster.routing.allocation.disk.threshold_enabled", false)
            .build();
        Environment environment = InternalSettingsPreparer.prepareEnvironment(settings, Map.of(), Path.of(words[0]), () -> "n");
        new WithNetwork(environment).start();
        new CountDownLatch(1).await();
    }
}
