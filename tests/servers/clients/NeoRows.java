// Writes rows to Neo4j and says when each was committed: java -cp JARS NeoRows.java ADDRESS, with NEO4J_USERNAME and NEO4J_PASSWORD
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.Map;
import org.neo4j.driver.AuthTokens;
import org.neo4j.driver.GraphDatabase;

public class NeoRows {
    public static void main(String[] words) throws Exception {
        var login = AuthTokens.basic(System.getenv("NEO4J_USERNAME"), System.getenv("NEO4J_PASSWORD"));
        var input = new BufferedReader(new InputStreamReader(System.in));
        try (var driver = GraphDatabase.driver(words[0], login); var session = driver.session()) {
            for (String line = input.readLine(); line != null; line = input.readLine()) {
                session.run("CREATE (:Row {row: $row})", Map.of("row", Long.parseLong(line.trim()))).consume();
                System.out.println("ok " + line.trim());
            }
        }
    }
}
