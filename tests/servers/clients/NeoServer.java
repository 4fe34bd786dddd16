// Neo4j from its jars, with Bolt: java -cp JARS NeoServer.java HOME CONFIGURATION
import java.nio.file.Path;
import java.util.concurrent.CountDownLatch;
import org.neo4j.dbms.api.DatabaseManagementServiceBuilder;

public class NeoServer {
    public static void main(String[] words) throws Exception {
        var server = new DatabaseManagementServiceBuilder(Path.of(words[0]))
            .loadPropertiesFromFile(Path.of(words[1]))
            .build();
        Runtime.getRuntime().addShutdownHook(new Thread(server::shutdown));
        new CountDownLatch(1).await();
    }
}
